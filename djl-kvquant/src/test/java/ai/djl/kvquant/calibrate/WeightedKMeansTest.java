/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class WeightedKMeansTest {

    @ParameterizedTest
    @CsvSource({"1, 10, 3", "2, 10, 3", "3, 10, 3", "4, 10, 2", "5, 8, 4", "6, 8, 1", "7, 7, 5"})
    void noAssignmentIsBetter(long seed, int n, int k) {
        Random random = new Random(seed);
        float[] values = normal(random, n);
        float[] weights = positive(random, n);
        float[] levels = WeightedKMeans.levels(values, weights, k);
        double least = leastOfAssignments(values, weights, k);
        assertEquals(least, cost(values, weights, levels), 1e-5 * least + 1e-12);
        assertSorted(levels);
    }

    /** Divide and conquer must find what the plain recursion over all cuts finds. */
    @ParameterizedTest
    @ValueSource(ints = {4, 8, 16})
    void manyValuesHaveTheirBestCuts(int k) {
        Random random = new Random(k);
        float[] values = normal(random, 300);
        float[] weights = positive(random, 300);
        double least = leastOfCuts(values, weights, k);
        double found = cost(values, weights, WeightedKMeans.levels(values, weights, k));
        assertEquals(least, found, 1e-5 * least);
    }

    @ParameterizedTest
    @ValueSource(ints = {4, 8, 16})
    void theHistogramCostsHardlyMore(int k) {
        for (Shape shape : Shape.values()) {
            float[] values = shape.samples(5000, k);
            float[] weights = positive(new Random(k), 5000);
            double exact = cost(values, weights, WeightedKMeans.levels(values, weights, k, 5000));
            double binned = cost(values, weights, WeightedKMeans.levels(values, weights, k));
            assertTrue(binned >= exact * (1 - 1e-5), shape + ": " + binned + " < " + exact);
            assertTrue(binned <= exact * (1 + 1e-3), shape + ": " + binned + " > " + exact);
        }
    }

    @Test
    void farOutliersDoNotBlurTheRest() {
        float[] values = Shape.NORMAL.samples(5000, 1);
        float[] weights = positive(new Random(1), 5000);
        values[17] = 3000f;
        values[18] = -2000f;
        double exact = cost(values, weights, WeightedKMeans.levels(values, weights, 8, 5000));
        double binned = cost(values, weights, WeightedKMeans.levels(values, weights, 8));
        assertEquals(exact, binned, 1e-2 * exact);
    }

    /** The optimum of four levels for the normal distribution, from Max's table. */
    @Test
    void theNormalDistributionHasItsKnownLevels() {
        float[] weights = new float[200_000];
        Arrays.fill(weights, 0.5f);
        float[] levels = WeightedKMeans.levels(Shape.NORMAL.samples(200_000, 3), weights, 4);
        assertArrayEquals(new float[] {-1.5104f, -0.4528f, 0.4528f, 1.5104f}, levels, 0.02f);
    }

    @Test
    void aWeightCountsLikeCopies() {
        float[] values = {0f, 1f, 5f, 6f, 20f};
        float[] copies = {0f, 0f, 0f, 1f, 5f, 6f, 6f, 20f};
        float[] ones = new float[copies.length];
        Arrays.fill(ones, 1f);
        assertArrayEquals(
                WeightedKMeans.levels(copies, ones, 3),
                WeightedKMeans.levels(values, new float[] {3f, 1f, 1f, 2f, 1f}, 3),
                1e-6f);
    }

    @Test
    void theLastOfTooFewValuesIsRepeated() {
        float[] weights = {1f, 2f, 1f, 1f, 0f};
        assertArrayEquals(
                new float[] {-3f, 0f, 2f, 2f},
                WeightedKMeans.levels(new float[] {2f, -3f, 0f, -0f, 9f}, weights, 4),
                1e-6f);
        float[] equal = new float[5000];
        float[] ones = new float[5000];
        Arrays.fill(equal, 7f);
        Arrays.fill(ones, 1f);
        assertArrayEquals(new float[] {7f, 7f}, WeightedKMeans.levels(equal, ones, 2), 1e-6f);
    }

    @Test
    void weightlessValuesCountForNothing() {
        float[] values = Shape.NORMAL.samples(6000, 1);
        float[] weights = positive(new Random(2), 6000);
        float[] longer = Arrays.copyOf(values, 6001);
        longer[6000] = 1e6f;
        assertArrayEquals(
                WeightedKMeans.levels(values, weights, 8),
                WeightedKMeans.levels(longer, Arrays.copyOf(weights, 6001), 8));
    }

    @Test
    void whatHasNoMeansIsRefused() {
        float[] ones = {1f, 1f};
        refused("1 values have 2 weights", new float[] {1f}, ones, 2);
        refused("Value 1 is NaN", new float[] {1f, Float.NaN}, ones, 2);
        refused("Weight 0 is -1", new float[] {1f, 2f}, new float[] {-1f, 1f}, 2);
        refused("positive weight", new float[] {1f, 2f}, new float[2], 2);
        refused("positive weight", new float[0], new float[0], 2);
        refused("0 levels", new float[] {1f, 2f}, ones, 0);
    }

    private static void refused(String message, float[] values, float[] weights, int k) {
        Exception e =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> WeightedKMeans.levels(values, weights, k));
        assertTrue(e.getMessage().contains(message), e.getMessage());
    }

    private static void assertSorted(float[] levels) {
        for (int i = 1; i < levels.length; ++i) {
            assertTrue(levels[i - 1] <= levels[i], Arrays.toString(levels));
        }
    }

    private static float[] normal(Random random, int n) {
        float[] values = new float[n];
        for (int i = 0; i < n; ++i) {
            values[i] = (float) random.nextGaussian();
        }
        return values;
    }

    private static float[] positive(Random random, int n) {
        float[] weights = new float[n];
        for (int i = 0; i < n; ++i) {
            weights[i] = 0.01f + (float) Math.exp(random.nextGaussian());
        }
        return weights;
    }

    private static double cost(float[] values, float[] weights, float[] levels) {
        double cost = 0;
        for (int i = 0; i < values.length; ++i) {
            double least = Double.POSITIVE_INFINITY;
            for (float level : levels) {
                double difference = (double) values[i] - level;
                least = Math.min(least, difference * difference);
            }
            cost += weights[i] * least;
        }
        return cost;
    }

    /** Every way of giving each value one of k clusters. */
    private static double leastOfAssignments(float[] values, float[] weights, int k) {
        double least = Double.POSITIVE_INFINITY;
        long count = Math.round(Math.pow(k, values.length));
        for (long assignment = 0; assignment < count; ++assignment) {
            double[] weight = new double[k];
            double[] sum = new double[k];
            double total = 0;
            long rest = assignment;
            for (int i = 0; i < values.length; ++i, rest /= k) {
                weight[(int) (rest % k)] += weights[i];
                sum[(int) (rest % k)] += (double) weights[i] * values[i];
                total += (double) weights[i] * values[i] * values[i];
            }
            for (int c = 0; c < k; ++c) {
                total -= weight[c] > 0 ? sum[c] * sum[c] / weight[c] : 0;
            }
            least = Math.min(least, total);
        }
        return least;
    }

    /** The recursion over the last cut, each tried, each cluster summed anew. */
    private static double leastOfCuts(float[] values, float[] weights, int k) {
        int n = values.length;
        Integer[] byValue = new Integer[n];
        Arrays.setAll(byValue, i -> i);
        Arrays.sort(byValue, (a, b) -> Float.compare(values[a], values[b]));
        double[] before = new double[n + 1];
        Arrays.fill(before, 1, n + 1, Double.POSITIVE_INFINITY);
        for (int c = 0; c < k; ++c) {
            double[] after = new double[n + 1];
            for (int end = 1; end <= n; ++end) {
                double weight = 0;
                double mean = 0;
                double spread = 0;
                after[end] = Double.POSITIVE_INFINITY;
                for (int cut = end - 1; cut >= 0; --cut) {
                    double w = weights[byValue[cut]];
                    double difference = values[byValue[cut]] - mean;
                    spread += w * weight / (w + weight) * difference * difference;
                    weight += w;
                    mean += w / weight * difference;
                    after[end] = Math.min(after[end], before[cut] + spread);
                }
            }
            before = after;
        }
        return before[n];
    }
}
