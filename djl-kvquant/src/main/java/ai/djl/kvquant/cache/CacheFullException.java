/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * Thrown when the KV cache has no room for the tokens to be appended.
 *
 * <p>The message says how many tokens fit and which option makes room for more.
 */
public class CacheFullException extends RuntimeException {

    private static final long serialVersionUID = 1L;

    /** Whether what was asked for fits into a cache that nothing else is in. */
    private final boolean fitsAlone;

    /**
     * Creates an exception for what never fits.
     *
     * @param message what was asked, what fits and what to do
     */
    public CacheFullException(String message) {
        this(message, false);
    }

    /**
     * Creates an exception.
     *
     * @param message what was asked, what fits and what to do
     * @param fitsAlone whether the sequence would have room if nothing else was in the cache
     */
    public CacheFullException(String message, boolean fitsAlone) {
        super(message);
        this.fitsAlone = fitsAlone;
    }

    /**
     * Tells whether the sequence would have room if nothing else was in the cache: then it may be
     * tried again once others have ended.
     *
     * @return false if the sequence is too long for the whole cache
     */
    public boolean fitsAlone() {
        return fitsAlone;
    }
}
