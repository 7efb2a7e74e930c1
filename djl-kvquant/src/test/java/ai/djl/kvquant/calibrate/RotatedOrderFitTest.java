/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class RotatedOrderFitTest {

    private static final int TOKENS = 7;
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
    void theRotatedMeanAscendsInEachGroup(int kvHeads, int together, int headDim) {
        TinySamples samples = samples(kvHeads, headDim);
        double[] mean = samples.keyMean();
        float[] order = samples.fitted(new RotatedOrderFit()).get(0, "keys.order");
        assertEquals(mean.length, order.length);
        double[][] rotation = rotation(together, headDim);
        int group = together * headDim;
        for (int first = 0; first < mean.length; first += group) {
            Set<Integer> channels = new TreeSet<>();
            double before = Double.NEGATIVE_INFINITY;
            for (int place = first; place < first + group; ++place) {
                int channel = Math.round(order[place]);
                assertEquals(channel, order[place]);
                assertTrue(channel >= first && channel < first + group, "channel " + channel);
                channels.add(channel);
                double rotated = 0;
                for (int i = 0; i < group; ++i) {
                    rotated += rotation[channel - first][i] * mean[first + i];
                }
                assertTrue(rotated >= before - 1e-4, "place " + place);
                before = rotated;
            }
            assertEquals(group, channels.size());
        }
    }

    private static TinySamples samples(int kvHeads, int headDim) {
        Random random = new Random(kvHeads);
        double[] mean = random.doubles(kvHeads * headDim, -5, 5).toArray();
        float[][] keys = new float[TOKENS][mean.length];
        for (float[] row : keys) {
            for (int c = 0; c < row.length; ++c) {
                row[c] = (float) (mean[c] + random.nextGaussian());
            }
        }
        double[] frequencies = TinySamples.usualFrequencies(headDim);
        return new TinySamples(
                kvHeads, headDim, frequencies, new float[TOKENS][kvHeads * headDim], keys);
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
