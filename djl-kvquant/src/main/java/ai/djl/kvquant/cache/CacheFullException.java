/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * Thrown when the KV cache has no room for the tokens to be appended.
 *
 * <p>The message says how many tokens fit and which option makes room for more.
 */
public class CacheFullException extends RuntimeException {

    private static final long serialVersionUID = 1L;

    /**
     * Creates an exception.
     *
     * @param message what was asked, what fits and what to do
     */
    public CacheFullException(String message) {
        super(message);
    }
}
