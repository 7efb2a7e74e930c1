/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.Random;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class LayerSamplesTest {

    private static final int TOKENS = 300;
    private static final int KV_HEADS = 3;
    private static final int PER_KV_HEAD = 2;
    private static final int HEAD_DIM = 8;

    private final NDManager scope = TinySamples.MANAGER.newSubManager();
    private final TinySamples tiny = create();
    private final LayerSamples samples = tiny.in(scope);

    private static TinySamples create() {
        Random random = new Random(3);
        float[][] queries = new float[TOKENS][KV_HEADS * PER_KV_HEAD * HEAD_DIM];
        float[][] keys = new float[TOKENS][KV_HEADS * HEAD_DIM];
        for (int t = 0; t < TOKENS; ++t) {
            for (int c = 0; c < queries[t].length; ++c) {
                queries[t][c] = (float) ((1 + c % 5) * random.nextGaussian());
            }
            for (int c = 0; c < keys[t].length; ++c) {
                keys[t][c] = (float) (c + random.nextGaussian());
            }
        }
        double[] frequencies = TinySamples.usualFrequencies(HEAD_DIM);
        return new TinySamples(KV_HEADS, HEAD_DIM, frequencies, queries, keys);
    }

    @AfterEach
    void close() {
        scope.close();
    }

    @Test
    void rowsAreQueriesThenKeysThenValues() {
        Shape queries = new Shape(TOKENS, KV_HEADS, PER_KV_HEAD, HEAD_DIM);
        assertEquals(queries, samples.queries().getShape());
        assertEquals(new Shape(TOKENS, KV_HEADS, HEAD_DIM), samples.keys().getShape());
        int queryChannels = tiny.heads() * HEAD_DIM;
        float[] q = samples.queries().toFloatArray();
        float[] k = samples.keys().toFloatArray();
        for (int t = 0; t < TOKENS; ++t) {
            for (int c = 0; c < queryChannels; ++c) {
                assertEquals(tiny.queries()[t][c], q[t * queryChannels + c]);
            }
            for (int c = 0; c < tiny.channels(); ++c) {
                assertEquals(tiny.keys()[t][c], k[t * tiny.channels() + c]);
            }
        }
    }

    @Test
    void theMeanIsOverTokens() {
        assertEquals(new Shape(KV_HEADS, HEAD_DIM), samples.keyMean().getShape());
        double[] mean = TinySamples.doubles(samples.keyMean().toFloatArray());
        assertArrayEquals(tiny.keyMean(), mean, 1e-4);
    }

    @Test
    void ropeTurnsPairsByTheTokensAngles() {
        float[] turned = samples.rope(samples.keys()).toFloatArray();
        for (int t = 0; t < TOKENS; ++t) {
            double[] expected = tiny.turned(TinySamples.doubles(tiny.keys()[t]), t);
            for (int c = 0; c < expected.length; ++c) {
                assertEquals(expected[c], turned[t * expected.length + c], 1e-4);
            }
        }
    }

    @Test
    void ropeRefusesOtherHeads() {
        assertThrows(
                IllegalArgumentException.class,
                () -> samples.rope(scope.zeros(new Shape(TOKENS, 1, 2 * HEAD_DIM))));
    }

    @Test
    void channelsMatterByTheMeanSquareOfAKvHeadsQueriesAfterRope() {
        double[][] expected = new double[KV_HEADS][HEAD_DIM];
        for (int t = 0; t < TOKENS; ++t) {
            double[] turned = tiny.turned(TinySamples.doubles(tiny.queries()[t]), t);
            for (int i = 0; i < turned.length; ++i) {
                int kvHead = i / HEAD_DIM / PER_KV_HEAD;
                expected[kvHead][i % HEAD_DIM] += turned[i] * turned[i] / TOKENS / PER_KV_HEAD;
            }
        }
        double[][] energy = samples.turnedWeights();
        assertEquals(KV_HEADS, energy.length);
        for (int h = 0; h < KV_HEADS; ++h) {
            assertArrayEquals(expected[h], energy[h], 1e-3);
        }
    }
}
