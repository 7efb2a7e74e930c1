/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class KeyOrderTest {

    private static final double[][] ONE = {{1}};
    private static final double[][] HADAMARD_2 = {{1, 1}, {1, -1}};

    private static final double[][] REFLECTION_3 = {
        {1 / 3.0, -2 / 3.0, -2 / 3.0}, {-2 / 3.0, 1 / 3.0, -2 / 3.0}, {-2 / 3.0, -2 / 3.0, 1 / 3.0}
    };

    /** Heads rotated together: the largest number up to 4 that divides the kv heads. */
    @ParameterizedTest
    @CsvSource({
        "1,1,16", "2,2,8", "3,3,16", "4,4,8", "5,1,8", "6,3,8", "8,4,16", "9,3,4", "10,2,4"
    })
    void theRotatedMeanAscends(int kvHeads, int together, int headDim) {
        int channels = kvHeads * headDim;
        float[] mean = mean(channels);
        check(KeyOrder.GROUP, mean, headDim, together, together * headDim);
        check(KeyOrder.LAYER, mean, headDim, together, channels);
        check(KeyOrder.GROUP, mean, headDim, 1, headDim);
        assertNull(KeyOrder.NATURAL.channels(mean, headDim, together));
    }

    /** The larger range mixes the channels of groups that are rotated apart. */
    @Test
    void theOrderOfALayerCrossesGroups() {
        float[] mean = mean(8 * 16);
        int[] order = KeyOrder.LAYER.channels(mean, 16, 4);
        long first = Arrays.stream(order, 0, 64).filter(channel -> channel < 64).count();
        assertTrue(first > 16 && first < 48, first + " of 64");
    }

    /** Equal means leave channels where they are. */
    @Test
    void withoutAMeanTheOrderIsNatural() {
        int[] order = KeyOrder.LAYER.channels(new float[48], 16, 3);
        assertArrayEquals(IntStream.range(0, 48).toArray(), order);
    }

    private static void check(KeyOrder kind, float[] mean, int headDim, int together, int range) {
        int[] order = kind.channels(mean, headDim, together);
        assertEquals(mean.length, order.length);
        double[][] rotation = rotation(together, headDim);
        int group = together * headDim;
        for (int first = 0; first < mean.length; first += range) {
            Set<Integer> channels = new TreeSet<>();
            double before = Double.NEGATIVE_INFINITY;
            for (int place = first; place < first + range; ++place) {
                int channel = order[place];
                assertTrue(channel >= first && channel < first + range, "channel " + channel);
                channels.add(channel);
                int begin = channel / group * group;
                double rotated = 0;
                for (int i = 0; i < group; ++i) {
                    rotated += rotation[channel - begin][i] * mean[begin + i];
                }
                assertTrue(rotated >= before - 1e-9, "place " + place);
                before = rotated;
            }
            assertEquals(range, channels.size());
        }
    }

    private static float[] mean(int channels) {
        Random random = new Random(channels);
        float[] mean = new float[channels];
        for (int c = 0; c < channels; ++c) {
            mean[c] = 10 * random.nextFloat() - 5;
        }
        return mean;
    }

    /** The mixing matrix over heads, times a normalised Hadamard matrix within each. */
    private static double[][] rotation(int together, int headDim) {
        double[][] hadamard = ONE;
        while (hadamard.length < headDim) {
            hadamard = kronecker(HADAMARD_2, hadamard);
        }
        double[][] mixing =
                switch (together) {
                    case 1 -> ONE;
                    case 2 -> scaled(HADAMARD_2, Math.sqrt(0.5));
                    case 3 -> REFLECTION_3;
                    case 4 -> scaled(kronecker(HADAMARD_2, HADAMARD_2), 0.5);
                    default -> throw new IllegalArgumentException("heads " + together);
                };
        return kronecker(mixing, scaled(hadamard, 1 / Math.sqrt(headDim)));
    }

    private static double[][] kronecker(double[][] a, double[][] b) {
        int n = b.length;
        double[][] product = new double[a.length * n][a.length * n];
        for (int i = 0; i < product.length; ++i) {
            for (int j = 0; j < product.length; ++j) {
                product[i][j] = a[i / n][j / n] * b[i % n][j % n];
            }
        }
        return product;
    }

    private static double[][] scaled(double[][] a, double factor) {
        return kronecker(new double[][] {{factor}}, a);
    }
}
