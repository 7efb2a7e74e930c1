/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.Calibration;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class PostRopeFitTest {

    private static final int TOKENS = 1500;
    private static final int KV_HEADS = 3;
    private static final int PER_KV_HEAD = 2;
    private static final int HEAD_DIM = 32;
    private static final int RUNS = 16;

    /** Keys of known mean, whose channels scatter differently. */
    private static TinySamples samples() {
        Random random = new Random(11);
        float[][] queries = new float[TOKENS][KV_HEADS * PER_KV_HEAD * HEAD_DIM];
        float[][] keys = new float[TOKENS][KV_HEADS * HEAD_DIM];
        for (int t = 0; t < TOKENS; ++t) {
            for (int c = 0; c < queries[t].length; ++c) {
                queries[t][c] = (float) ((0.2 + c % 7) * random.nextGaussian());
            }
            for (int c = 0; c < keys[t].length; ++c) {
                keys[t][c] = (float) (mean(c) + scatter(c) * random.nextGaussian());
            }
        }
        double[] frequencies = TinySamples.usualFrequencies(HEAD_DIM);
        return new TinySamples(KV_HEADS, HEAD_DIM, frequencies, queries, keys);
    }

    private static double mean(int channel) {
        return 20 * Math.sin(channel);
    }

    private static double scatter(int channel) {
        return 3 * Math.exp(-(channel * 7 % HEAD_DIM) / 10.0);
    }

    private static int[] integers(Calibration calibration, String name) {
        float[] values = calibration.get(0, name);
        return IntStream.range(0, values.length).map(i -> (int) values[i]).toArray();
    }

    @ParameterizedTest
    @ValueSource(doubles = {1.5, 2, 3, 4, 8})
    void arraysHaveTheSizesAndBitsAskedFor(double bits) {
        Calibration fitted = samples().fitted(new PostRopeFit(bits));
        int channels = KV_HEADS * HEAD_DIM;
        assertEquals(channels, fitted.get(0, "keys.mean").length);
        assertEquals(channels, fitted.get(0, "keys.noise").length);
        assertArrayEquals(new long[] {channels, 2}, fitted.shape(0, "keys.steps"));
        int[] widths = integers(fitted, "keys.widths");
        assertEquals(RUNS, widths.length);
        assertEquals(bits * RUNS, IntStream.of(widths).sum());
        int[] order = integers(fitted, "keys.order");
        for (int head = 0; head < KV_HEADS; ++head) {
            int[] ofHead = IntStream.of(order).skip(head * HEAD_DIM).limit(HEAD_DIM).toArray();
            int first = head * HEAD_DIM;
            int[] all = IntStream.range(first, first + HEAD_DIM).toArray();
            assertArrayEquals(all, IntStream.of(ofHead).sorted().toArray(), "head " + head);
        }
    }

    @Test
    void theMeanIsFound() {
        float[] mean = samples().fitted(new PostRopeFit(2)).get(0, "keys.mean");
        for (int c = 0; c < mean.length; ++c) {
            // five standard errors
            assertEquals(mean(c), mean[c], 5 * scatter(c) / Math.sqrt(TOKENS), "channel " + c);
        }
    }

    @ParameterizedTest
    @ValueSource(doubles = {1.5, 2, 4})
    void noiseIsTheErrorOfTheCodes(double bits) {
        TinySamples samples = samples();
        Calibration fitted = samples.fitted(new PostRopeFit(bits));
        int[] order = integers(fitted, "keys.order");
        int[] widths = integers(fitted, "keys.widths");
        float[] steps = fitted.get(0, "keys.steps");
        double[][] centred = samples.centred(fitted.get(0, "keys.mean"));
        double[] expected = new double[order.length];
        for (int t = 0; t < TOKENS; ++t) {
            double[] turned = samples.turned(centred[t], t);
            for (int place = 0; place < order.length; ++place) {
                int width = widths[place % HEAD_DIM / (HEAD_DIM / RUNS)];
                double value = turned[order[place]];
                double coded =
                        TinySamples.coded(value, steps[2 * place], steps[2 * place + 1], width);
                expected[order[place]] += (value - coded) * (value - coded) / TOKENS;
            }
        }
        float[] noise = fitted.get(0, "keys.noise");
        for (int c = 0; c < noise.length; ++c) {
            assertEquals(expected[c], noise[c], 0.01 * expected[c], "channel " + c);
            double variance = scatter(c) * scatter(c);
            assertTrue(noise[c] > 0 && noise[c] < 100 * variance, "channel " + c);
        }
    }

    /** Pairs 2i and 2i + 1 turn alike and hold the same keys; queries of 2i are larger. */
    @Test
    void queriesDecideBetweenEqualChannels() {
        int half = HEAD_DIM / 2;
        double[] frequencies = TinySamples.usualFrequencies(HEAD_DIM);
        TinySamples plain = samples();
        for (int i = 1; i < half; i += 2) {
            frequencies[i] = frequencies[i - 1];
            for (int t = 0; t < TOKENS; ++t) {
                for (int c = i; c < KV_HEADS * HEAD_DIM; c += half) {
                    plain.keys()[t][c] = plain.keys()[t][c - 1];
                }
                for (int c = i; c < plain.queries()[t].length; c += half) {
                    plain.queries()[t][c] = plain.queries()[t][c - 1] / 8;
                }
            }
        }
        TinySamples twins =
                new TinySamples(KV_HEADS, HEAD_DIM, frequencies, plain.queries(), plain.keys());
        Calibration fitted = twins.fitted(new PostRopeFit(2));
        int[] order = integers(fitted, "keys.order");
        int[] widths = integers(fitted, "keys.widths");
        int[] widthOf = new int[order.length];
        for (int place = 0; place < order.length; ++place) {
            widthOf[order[place]] = widths[place % HEAD_DIM / (HEAD_DIM / RUNS)];
        }
        int more = 0;
        for (int c = 0; c < widthOf.length; c += 2) {
            assertTrue(widthOf[c] >= widthOf[c + 1], "channels " + c + " and " + (c + 1));
            more += widthOf[c] > widthOf[c + 1] ? 1 : 0;
        }
        assertTrue(more > widthOf.length / 8, more + " channels have more bits than their twins");
    }
}
