/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.nio.FloatBuffer;
import java.util.function.IntFunction;

/**
 * What the rows of a batch choose their next tokens from: the most probable tokens, if no row needs
 * more and the batch can tell them, or else the logits.
 */
final class NextTokens {

    private final float[] row;
    private int[] mostProbable;
    private FloatBuffer logits;

    NextTokens(int vocabularySize) {
        row = new float[vocabularySize];
    }

    /**
     * Reads what a batch has computed; valid until its next step.
     *
     * @param batch the batch
     * @param greedy whether every row that chooses takes its most probable token, whatever the
     *     logits are
     */
    void read(DecodingBatch batch, boolean greedy) {
        mostProbable = greedy ? batch.mostProbable().orElse(null) : null;
        logits = mostProbable == null ? LogitRows.of(batch, row.length) : null;
    }

    /**
     * Chooses the next token of a row.
     *
     * @param index the row
     * @param sequence the sequence of that row
     * @param sampler what samples from the row's logits, given their number, if they are needed
     * @return the choice
     */
    Choice choose(int index, GeneratingSequence sequence, IntFunction<Sampler> sampler) {
        if (mostProbable != null) {
            return sequence.choose(mostProbable[index]);
        }
        logits.position(index * row.length);
        logits.get(row);
        return sequence.choose(row, sampler.apply(row.length));
    }
}
