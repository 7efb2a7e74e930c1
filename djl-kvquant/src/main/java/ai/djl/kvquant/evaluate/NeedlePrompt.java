/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.evaluate;

import java.util.Arrays;

/**
 * A long text that hides a pass key, and ends where the key is to be repeated.
 *
 * @param tokens the token ids, the ending included
 * @param key the answer
 * @param answerTokens tokens that the answer takes
 * @param length tokens of prompt and answer that were asked for; a little more than there are
 * @param depth where the key is hidden, from 0, the beginning, to 1, just before the ending
 */
public record NeedlePrompt(int[] tokens, String key, int answerTokens, int length, double depth) {

    /** {@inheritDoc} */
    @Override
    public boolean equals(Object other) {
        return other instanceof NeedlePrompt that
                && Arrays.equals(tokens, that.tokens)
                && key.equals(that.key)
                && answerTokens == that.answerTokens
                && length == that.length
                && depth == that.depth;
    }

    /** {@inheritDoc} */
    @Override
    public int hashCode() {
        return 31 * Arrays.hashCode(tokens) + key.hashCode();
    }

    /** {@inheritDoc} */
    @Override
    public String toString() {
        return "NeedlePrompt[" + tokens.length + " tokens, key " + key + ", depth " + depth + "]";
    }
}
