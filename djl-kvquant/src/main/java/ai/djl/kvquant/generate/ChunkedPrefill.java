/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

/**
 * A prompt on its way into the KV cache, some tokens at a time, so that other sequences can be
 * decoded in between.
 *
 * <p>Used by one thread at a time.
 */
public interface ChunkedPrefill extends AutoCloseable {

    /**
     * Returns how many tokens of the prompt are still to be computed.
     *
     * @return the number of tokens; 0 when {@link #finish} may be called
     */
    int remaining();

    /**
     * Computes the next tokens.
     *
     * @throws ai.djl.kvquant.cache.CacheFullException if the KV cache has no room for them; what
     *     was computed before stays, so that the call may be repeated
     */
    void advance();

    /**
     * Computes the next tokens, or a part of what there is to do for them if that is more than a
     * budget; {@link #remaining} stays the same until all of it is done. What comes out does not
     * depend on it.
     *
     * @param budget the work to do at most, unless that is too little for anything: that of so many
     *     tokens at the beginning of a prompt
     * @return the work that was done
     * @throws ai.djl.kvquant.cache.CacheFullException see {@link #advance()}
     */
    default int advance(int budget) {
        int before = remaining();
        advance();
        return before - remaining();
    }

    /**
     * Hands over the prompt once all of it is computed.
     *
     * @return a batch of one row; the caller closes it
     * @throws IllegalStateException if tokens remain
     */
    DecodingBatch finish();

    /** Releases the KV cache unless a batch has taken it over; further calls do nothing. */
    @Override
    void close();
}
