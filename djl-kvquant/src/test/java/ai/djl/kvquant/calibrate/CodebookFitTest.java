/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.kvquant.cache.Calibration;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.Arrays;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** One kv head of 8 channels with one query, all at position 0. */
class CodebookFitTest {

    private static final int CHANNELS = 8;

    private final Random random = new Random(11);

    private static Calibration fitted(
            KeyFit fit, float[][] queries, float[][] keys, float[][] values, float[][] gradients) {
        int tokens = keys.length;
        float[] qkv = new float[tokens * 3 * CHANNELS];
        for (int t = 0; t < tokens; ++t) {
            System.arraycopy(queries[t], 0, qkv, 3 * t * CHANNELS, CHANNELS);
            System.arraycopy(keys[t], 0, qkv, (3 * t + 1) * CHANNELS, CHANNELS);
            System.arraycopy(values[t], 0, qkv, (3 * t + 2) * CHANNELS, CHANNELS);
        }
        int half = CHANNELS / 2;
        CacheGeometry geometry = new CacheGeometry(1, 1, 1, CHANNELS, 1, new double[half], 1 << 16);
        Calibration.Builder out = new Calibration.Builder(Map.of());
        try (NDManager scope = TinySamples.MANAGER.newSubManager()) {
            Shape angles = new Shape(tokens, 1, half);
            LayerSamples samples =
                    LayerSamples.of(
                            geometry,
                            scope.create(qkv, new Shape(tokens, 3, CHANNELS)),
                            scope.ones(angles),
                            scope.zeros(angles));
            if (gradients != null) {
                NDArray array = scope.create(gradients).reshape(tokens, 1, CHANNELS);
                samples = samples.with(new LayerSamples.Gradients(array, array));
            }
            fit.write(out, 0, samples);
        }
        return out.build();
    }

    private float[][] uniform(int tokens) {
        float[][] rows = new float[tokens][CHANNELS];
        for (float[] row : rows) {
            for (int c = 0; c < CHANNELS; ++c) {
                row[c] = 2 * random.nextFloat() - 1;
            }
        }
        return rows;
    }

    /** Evenly spread elements in a wild order. */
    private static float[][] grid(int tokens) {
        float[][] rows = new float[tokens][CHANNELS];
        int n = tokens * CHANNELS;
        for (int i = 0; i < n; ++i) {
            rows[i / CHANNELS][i % CHANNELS] = (2 * (7919L * i % n) + 1f) / n - 1;
        }
        return rows;
    }

    private static float[][] ones(int tokens) {
        float[][] rows = new float[tokens][CHANNELS];
        for (float[] row : rows) {
            Arrays.fill(row, 1);
        }
        return rows;
    }

    /** Channel c of token t holds a permutation of 0 to 200, times c and plus 10 c. */
    private static float[][] ramps() {
        float[][] keys = new float[201][CHANNELS];
        for (int t = 0; t < keys.length; ++t) {
            for (int c = 0; c < CHANNELS; ++c) {
                keys[t][c] = 10 * c + c * (t * 7 % 201);
            }
        }
        return keys;
    }

    /** Of 201 values half a percent is one value. */
    @ParameterizedTest
    @ValueSource(doubles = {0, 0.01, 0.1, 0.015})
    void rangesOfChannelsArePercentiles(double outliers) {
        float[][] keys = ramps();
        Calibration found = fitted(new CodebookKeyFit(3, outliers), keys, keys, keys, null);
        assertArrayEquals(new long[] {CHANNELS, 2}, found.shape(0, "keys.steps"));
        float[] steps = found.get(0, "keys.steps");
        for (int c = 0; c < CHANNELS; ++c) {
            assertEquals(110 * c, steps[2 * c], 1e-3, "start of channel " + c);
            double half = c * (100 - 200 * outliers / 2);
            if (c > 0) {
                assertEquals(half, steps[2 * c + 1], 1e-3, "step of channel " + c);
            } else {
                assertTrue(steps[1] > 0 && steps[1] < 1e-3, "a channel that does not vary");
            }
        }
    }

    @Test
    void percentilesLieBetweenValues() {
        float[] sorted = {1, 2, 4, 8, 16};
        assertEquals(1, CodebookKeyFit.percentile(sorted, 0));
        assertEquals(16, CodebookKeyFit.percentile(sorted, 1));
        assertEquals(4, CodebookKeyFit.percentile(sorted, 0.5));
        assertEquals(1.4, CodebookKeyFit.percentile(sorted, 0.1), 1e-9);
        assertEquals(8 + 0.8 * 8, CodebookKeyFit.percentile(sorted, 0.95), 1e-9);
        assertEquals(3, CodebookKeyFit.percentile(new float[] {3}, 0.995));
    }

    /** Levels of values spread evenly over a range are the middles of its parts. */
    @ParameterizedTest
    @ValueSource(ints = {2, 3, 4})
    void levelsOfUniformElementsAreEquallySpaced(int bits) {
        float[][] rows = grid(4000);
        Calibration keys = fitted(new CodebookKeyFit(bits, 0), ones(4000), rows, rows, null);
        float[] levels = keys.get(0, "keys.levels");
        int count = 1 << bits;
        assertEquals(count, levels.length);
        for (int i = 0; i < count; ++i) {
            assertEquals((2 * i + 1.0) / count - 1, levels[i], 5e-3, "level " + i);
        }
        assertEquals(bits == 2, keys.has(0, "keys.read_levels"));
        assertFalse(keys.has(0, "values.levels"));
    }

    /** Each token in its own range: what is left of it is -1 or 1. */
    @Test
    void levelsOfTwoValuesAreTheseValues() {
        float[][] values = new float[300][CHANNELS];
        for (int t = 0; t < values.length; ++t) {
            for (int c = 0; c < CHANNELS; ++c) {
                values[t][c] = t + (c % 2 == 0 ? 1 + t : -1 - t);
            }
            // kept apart
            values[t][t % CHANNELS] = 1e5f;
            values[t][(t + 1) % CHANNELS] = -1e5f;
        }
        Calibration found = fitted(new CodebookValueFit(2, 1), values, values, values, null);
        assertArrayEquals(new float[] {-1, 1, 1, 1}, found.get(0, "values.levels"), 1e-5f);
        assertArrayEquals(new float[] {-1, 1, 1, 1}, found.get(0, "values.read_levels"), 1e-3f);
        assertFalse(found.has(0, "keys.levels"));
    }

    /** Outliers of keys have no part in levels: 5 % of them far away. */
    @Test
    void outliersOfKeysDoNotMoveLevels() {
        float[][] keys = uniform(4000);
        for (int t = 0; t < 4000; t += 20) {
            Arrays.fill(keys[t], t % 40 == 0 ? 50 : -50);
        }
        CodebookKeyFit fit = new CodebookKeyFit(2, 0.06);
        Calibration found = fitted(fit, ones(4000), keys, keys, null);
        float[] expected = {-0.75f, -0.25f, 0.25f, 0.75f};
        assertArrayEquals(expected, found.get(0, "keys.levels"), 0.03f);
    }

    /**
     * Each level is the mean of the elements that are nearest to it, weighted as equation 7 says.
     */
    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void levelsAreWeightedMeansOfTheirElements(boolean withGradients) {
        int tokens = 3000;
        float[][] keys = uniform(tokens);
        float[][] queries = uniform(tokens);
        float[][] gradients = uniform(tokens);
        for (int t = 0; t < tokens; ++t) {
            for (int c = 0; c < CHANNELS; ++c) {
                // skewed, in ranges of all sizes
                keys[t][c] = (float) Math.exp(keys[t][c] * (1 + 0.3 * c)) * (1 + c);
                queries[t][c] *= CHANNELS - c;
                gradients[t][c] *= 1e-5f * (1 + Math.abs(keys[t][c]));
            }
        }
        Calibration found =
                fitted(
                        new CodebookKeyFit(2, 0),
                        queries,
                        keys,
                        keys,
                        withGradients ? gradients : null);
        float[] steps = found.get(0, "keys.steps");
        float[] levels = found.get(0, "keys.levels");
        double[] energy = new double[CHANNELS];
        for (float[] row : queries) {
            for (int c = 0; c < CHANNELS; ++c) {
                energy[c] += row[c] * row[c];
            }
        }
        double[] sums = new double[4];
        double[] weights = new double[4];
        for (int t = 0; t < tokens; ++t) {
            for (int c = 0; c < CHANNELS; ++c) {
                double x = (keys[t][c] - steps[2 * c]) / steps[2 * c + 1];
                double weight =
                        withGradients ? (double) gradients[t][c] * gradients[t][c] : energy[c];
                weight *= (double) steps[2 * c + 1] * steps[2 * c + 1];
                int nearest = 0;
                for (int i = 1; i < 4; ++i) {
                    nearest = Math.abs(x - levels[i]) < Math.abs(x - levels[nearest]) ? i : nearest;
                }
                sums[nearest] += weight * x;
                weights[nearest] += weight;
            }
        }
        for (int i = 0; i < 4; ++i) {
            assertEquals(sums[i] / weights[i], levels[i], 2e-3, "level " + i);
        }
    }

    /** Values of tokens with wide ranges count for more, those with gradients, too. */
    @Test
    void wideTokensAndGradientsDecideLevelsOfValues() {
        int tokens = 2000;
        float[][] values = new float[tokens][CHANNELS];
        float[][] gradients = new float[tokens][CHANNELS];
        for (int t = 0; t < tokens; ++t) {
            for (int c = 0; c < CHANNELS; ++c) {
                float x = c == 0 ? -1 : c == 1 ? 1 : (t % 2 == 0 ? 0.3f : -0.3f);
                values[t][c] = t % 2 == 0 ? 1000 * x : x;
                gradients[t][c] = t % 2 == 0 ? 1e-9f : 1;
            }
        }
        CodebookValueFit fit = new CodebookValueFit(2, 0);
        Calibration found = fitted(fit, values, values, values, null);
        float[] all = {-1, -0.3f, 0.3f, 1};
        assertArrayEquals(all, found.get(0, "values.levels"), 1e-3f);
        // at one bit the larger tokens decide: -1 against 0.3 and 1
        float mean = (6 * 0.3f + 1) / 7;
        CodebookValueFit narrow = new CodebookValueFit(1, 0);
        found = fitted(narrow, values, values, values, null);
        assertArrayEquals(new float[] {-1, mean}, found.get(0, "values.levels"), 1e-3f);
        found = fitted(narrow, values, values, values, gradients);
        assertArrayEquals(new float[] {-mean, 1}, found.get(0, "values.levels"), 1e-3f);
    }

    @Test
    void readLevelsRestoreMeanAndDeviation() {
        float[] elements = new float[5000];
        for (int i = 0; i < elements.length; ++i) {
            elements[i] = (float) (0.3 + 0.2 * random.nextGaussian());
        }
        float[] levels = {-0.4f, 0.2f, 0.3f, 0.9f};
        float[] read = Codebook.readLevels(elements, levels);
        double[] before = new double[2];
        double[] after = new double[2];
        for (float element : elements) {
            int nearest = 0;
            for (int i = 1; i < levels.length; ++i) {
                if (Math.abs(element - levels[i]) < Math.abs(element - levels[nearest])) {
                    nearest = i;
                }
            }
            before[0] += element;
            before[1] += (double) element * element;
            after[0] += read[nearest];
            after[1] += (double) read[nearest] * read[nearest];
        }
        assertEquals(before[0], after[0], 1e-5 * Math.abs(before[0]));
        assertEquals(before[1], after[1], 1e-5 * before[1]);
        assertArrayEquals(levels, Codebook.readLevels(levels, levels), 1e-6f);
    }
}
