/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class BitAllocatorTest {

    private static final int[] WIDTHS = BitAllocator.widths();

    @ParameterizedTest
    @ValueSource(longs = {1, 2, 3, 4, 5, 6})
    void noScheduleIsBetter(long seed) {
        Random random = new Random(seed);
        double[][] variances = variances(random, 2, 12);
        double[][][] distortions = distortions(random, variances, seed % 2 == 0);
        for (double bits : new double[] {0, 0.25, 1, 1.25, 1.5, 2, 2.3, 3, 4, 7.75, 8}) {
            BitAllocator.Allocation allocation = one(distortions, variances, 4, bits);
            double found = total(distortions, allocation.order(), allocation.widths());
            double least = Double.POSITIVE_INFINITY;
            for (int[] widths : schedules(4)) {
                if (IntStream.of(widths).sum() <= 4 * bits) {
                    least = Math.min(least, total(distortions, allocation.order(), widths));
                }
            }
            assertEquals(least, found, 1e-12 * least, "at " + bits + " bits");
            assertTrue(IntStream.of(allocation.widths()).sum() <= 4 * bits);
        }
    }

    @Test
    void theBudgetOfALayerIsUsedAndNeverExceeded() {
        Random random = new Random(11);
        double[][] variances = variances(random, 3, 64);
        double[][][] distortions = distortions(random, variances, false);
        double before = Double.POSITIVE_INFINITY;
        for (double bits : new double[] {1, 1.25, 1.5, 2, 2.0625, 3, 4, 8}) {
            int[] widths = one(distortions, variances, 16, bits).widths();
            // distortion falls with each bit, so that all are spent where widths allow it
            assertEquals((int) (16 * bits), IntStream.of(widths).sum(), Arrays.toString(widths));
            double total =
                    total(distortions, one(distortions, variances, 16, bits).order(), widths);
            assertTrue(total < before);
            before = total;
        }
    }

    @Test
    void channelsOfEachHeadAreSortedByVariance() {
        Random random = new Random(3);
        double[][] variances = variances(random, 3, 8);
        int[] order = one(constant(variances), variances, 2, 2).order();
        int[] sorted = order.clone();
        Arrays.sort(sorted);
        assertArrayEquals(IntStream.range(0, 24).toArray(), sorted);
        for (int i = 0; i < 24; ++i) {
            assertEquals(i / 8, order[i] / 8, "a channel left its head");
            if (i % 8 > 0) {
                assertTrue(variances[i / 8][order[i] % 8] <= variances[i / 8][order[i - 1] % 8]);
            }
        }
    }

    @Test
    void equalVariancesKeepTheirOrder() {
        double[][] variances = {{1, 2, 1, 2}, {5, 5, 5, 5}};
        assertArrayEquals(
                new int[] {1, 3, 0, 2, 4, 5, 6, 7},
                one(constant(variances), variances, 2, 1).order());
    }

    @Test
    void noDivisionBetweenLayersIsBetter() {
        Random random = new Random(12);
        List<double[][]> variances = new ArrayList<>();
        List<double[][][]> distortions = new ArrayList<>();
        for (double importance : new double[] {1, 30, 0.02}) {
            double[][] ofLayer = variances(random, 2, 4);
            for (double[] ofHead : ofLayer) {
                Arrays.setAll(ofHead, c -> importance * ofHead[c]);
            }
            variances.add(ofLayer);
            distortions.add(distortions(random, ofLayer, false));
        }
        List<BitAllocator.Allocation> found = BitAllocator.allocate(distortions, variances, 2, 2);
        double total = 0;
        int bits = 0;
        for (int layer = 0; layer < 3; ++layer) {
            BitAllocator.Allocation own = found.get(layer);
            total += total(distortions.get(layer), own.order(), own.widths());
            bits += IntStream.of(own.widths()).sum();
        }
        assertEquals(12, bits);
        assertEquals(least(distortions, found), total, 1e-12 * total);
        assertTrue(IntStream.of(found.get(1).widths()).sum() > 4, "the important layer");
    }

    /** Over all schedules of 3 layers with 2 to 8 bits each and 12 in all. */
    private static double least(
            List<double[][][]> distortions, List<BitAllocator.Allocation> orders) {
        double[][] best = new double[3][9];
        for (int layer = 0; layer < 3; ++layer) {
            Arrays.fill(best[layer], Double.POSITIVE_INFINITY);
            for (int[] widths : schedules(2)) {
                int bits = IntStream.of(widths).sum();
                if (bits >= 2 && bits <= 8) {
                    int[] order = orders.get(layer).order();
                    double total = total(distortions.get(layer), order, widths);
                    best[layer][bits] = Math.min(best[layer][bits], total);
                }
            }
        }
        double least = Double.POSITIVE_INFINITY;
        for (int a = 2; a <= 8; ++a) {
            for (int b = 2; a + b <= 10; ++b) {
                for (int c = 2; a + b + c <= 12 && c <= 8; ++c) {
                    if (b <= 8) {
                        least = Math.min(least, best[0][a] + best[1][b] + best[2][c]);
                    }
                }
            }
        }
        return least;
    }

    @Test
    void whatDoesNotFitIsRefused() {
        Random random = new Random(5);
        double[][] variances = variances(random, 2, 8);
        double[][][] distortions = distortions(random, variances, false);
        for (double bits : new double[] {-1, 8.5, Double.NaN}) {
            refused("allowed are 0 to 8", distortions, variances, 4, bits);
        }
        refused("must divide", distortions, variances, 3, 2);
        refused("must divide", distortions, variances, 0, 2);
        refused("heads", Arrays.copyOf(distortions, 1), variances, 4, 2);
        distortions[1][2][3] = Double.NaN;
        refused("channel 2 of head 1 is NaN", distortions, variances, 4, 2);
        variances[0][7] = -1;
        refused("variance of channel 7 of head 0", distortions, variances, 4, 2);
        variances[1] = new double[4];
        variances[0][7] = 1;
        refused("Head 1", distortions, variances, 4, 2);
    }

    /** The allocation of a single layer, which has the whole budget. */
    private static BitAllocator.Allocation one(
            double[][][] distortions, double[][] variances, int runs, double bits) {
        return BitAllocator.allocate(
                        Collections.singletonList(distortions),
                        Collections.singletonList(variances),
                        runs,
                        bits)
                .get(0);
    }

    /** Distortions that no width changes. */
    private static double[][][] constant(double[][] variances) {
        return new double[variances.length][variances[0].length][WIDTHS.length];
    }

    private static void refused(
            String message, double[][][] distortions, double[][] variances, int runs, double bits) {
        Exception e =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> one(distortions, variances, runs, bits));
        assertTrue(e.getMessage().contains(message), e.getMessage());
    }

    private static double[][] variances(Random random, int heads, int headDim) {
        double[][] variances = new double[heads][headDim];
        for (double[] ofHead : variances) {
            Arrays.setAll(ofHead, c -> Math.exp(2 * random.nextGaussian()));
        }
        return variances;
    }

    /** Distortions that fall with the width; those that are odd need not fall evenly. */
    private static double[][][] distortions(Random random, double[][] variances, boolean odd) {
        double[] part = {1, 0.36, 0.12, 0.036, 0.0115, 0.0001};
        double[][][] distortions = new double[variances.length][][];
        for (int head = 0; head < variances.length; ++head) {
            distortions[head] = new double[variances[head].length][WIDTHS.length];
            for (int c = 0; c < variances[head].length; ++c) {
                double least = odd ? 0.01 : 0.8;
                double scale = variances[head][c];
                Arrays.setAll(
                        distortions[head][c],
                        w -> scale * part[w] * (least + (1 - least) * random.nextDouble()));
            }
        }
        return distortions;
    }

    /** The total by its definition: each place's channel at the width of the place's run. */
    private static double total(double[][][] distortions, int[] order, int[] widths) {
        int headDim = distortions[0].length;
        double total = 0;
        for (int head = 0; head < distortions.length; ++head) {
            for (int place = 0; place < headDim; ++place) {
                int channel = order[head * headDim + place] - head * headDim;
                int width = widths[place * widths.length / headDim];
                total += distortions[head][channel][Arrays.binarySearch(WIDTHS, width)];
            }
        }
        return total;
    }

    private static int[][] schedules(int runs) {
        int count = (int) Math.pow(WIDTHS.length, runs);
        int[][] schedules = new int[count][runs];
        for (int i = 0; i < count; ++i) {
            for (int run = 0, rest = i; run < runs; ++run, rest /= WIDTHS.length) {
                schedules[i][run] = WIDTHS[rest % WIDTHS.length];
            }
        }
        return schedules;
    }
}
