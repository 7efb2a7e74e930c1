/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Random;
import org.junit.jupiter.api.Test;

class KeyMeanFitTest {

    private static final int TOKENS = 7;
    private static final int KV_HEADS = 3;
    private static final int HEAD_DIM = 8;

    @Test
    void theMeanIsThatOfKeysBeforeRope() {
        Random random = new Random(1);
        float[][] keys = new float[TOKENS][KV_HEADS * HEAD_DIM];
        for (float[] row : keys) {
            for (int c = 0; c < row.length; ++c) {
                row[c] = c + (float) random.nextGaussian();
            }
        }
        float[][] queries = new float[TOKENS][KV_HEADS * HEAD_DIM];
        TinySamples samples =
                new TinySamples(
                        KV_HEADS, HEAD_DIM, TinySamples.usualFrequencies(HEAD_DIM), queries, keys);
        double[] expected = samples.keyMean();
        float[] mean = samples.fitted(new KeyMeanFit()).get(0, "keys.mean");
        assertEquals(expected.length, mean.length);
        for (int c = 0; c < mean.length; ++c) {
            assertEquals(expected[c], mean[c], 1e-4, "channel " + c);
        }
    }
}
