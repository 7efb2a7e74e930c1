/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

/**
 * Receives tokens as they are generated.
 *
 * <p>All calls come from the thread that asked for the generation. An exception ends the
 * generation, closes it and reaches the caller.
 */
@FunctionalInterface
public interface GenerationListener {

    /**
     * Receives a token.
     *
     * @param token the token; its text pieces, joined, are the text of the sequence
     * @return {@code false} to end this sequence; the others of the batch go on (a {@link
     *     Cancellation} ends all)
     */
    boolean onToken(GeneratedToken token);

    /**
     * Receives the end of a sequence.
     *
     * @param sequence the index of the prompt
     * @param remainder text that no token's piece carried; empty unless the sequence was cut short
     *     (CANCELLED or CACHE_FULL) while an incomplete character or a possible stop string was
     *     held back
     * @param result the whole result
     */
    default void onFinish(int sequence, String remainder, GenerationResult result) {}
}
