/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * Gives the channels of a layer's keys their widths.
 *
 * <p>The channels of each head are sorted by descending weighted variance and cut into runs of
 * equal length. All channels of a run have the same width, and the runs of all heads have the same
 * schedule of widths, so that pages are uniform and vector lanes stay full.
 */
final class BitAllocator {

    private static final int[] WIDTHS = {0, 1, 2, 4, 8};

    private BitAllocator() {}

    /**
     * Which channels lie where, and how wide.
     *
     * @param order the channel of the layer, {@code head * headDim + channel}, at each place
     * @param widths the bits per channel of each run of a head's places
     */
    record Allocation(int[] order, int[] widths) {}

    /** The widths that an allocation may use, ascending: the last axis of distortions. */
    static int[] widths() {
        return WIDTHS.clone();
    }

    /**
     * Returns the schedule of least total distortion under a budget. It is exact: the best total
     * for every number of bits is carried from run to run.
     *
     * @param distortions weighted distortions {@code [head][channel][width]}, in the order of
     *     {@link #widths}
     * @param variances weighted variances {@code [head][channel]}
     * @param runs the runs of each head; they must divide its channels
     * @param bits the bits per channel on average, 0 to 8; the sum of the runs' widths is at most
     *     {@code bits * runs}
     */
    static Allocation allocate(
            double[][][] distortions, double[][] variances, int runs, double bits) {
        checkVariances(variances, runs);
        checkDistortions(distortions, variances);
        if (!(bits >= 0 && bits <= 8)) {
            throw new IllegalArgumentException(
                    "An average of " + bits + " bits was asked for; allowed are 0 to 8.");
        }
        int[] order = order(variances);
        // what was meant as a whole number of bits stays one
        int budget = (int) Math.floor(bits * runs + 1e-6);
        return new Allocation(order, cheapest(runDistortions(distortions, order, runs), budget));
    }

    /**
     * Returns a fixed schedule over the sorted channels, which a paper's method prescribes.
     *
     * @param variances variances {@code [head][channel]}
     * @param widths the width of each run; their number must divide the channels
     */
    static Allocation allocate(double[][] variances, int[] widths) {
        checkVariances(variances, widths.length);
        for (int width : widths) {
            UniformQuantizer.checkBits(width);
        }
        return new Allocation(order(variances), widths.clone());
    }

    /** Sorts the channels of each head by descending variance; equal ones keep their order. */
    private static int[] order(double[][] variances) {
        int headDim = variances[0].length;
        int[] order = new int[variances.length * headDim];
        for (int head = 0; head < variances.length; ++head) {
            double[] ofHead = variances[head];
            Integer[] channels = IntStream.range(0, headDim).boxed().toArray(Integer[]::new);
            // a stable sort
            Arrays.sort(channels, (a, b) -> Double.compare(ofHead[b], ofHead[a]));
            for (int place = 0; place < headDim; ++place) {
                order[head * headDim + place] = head * headDim + channels[place];
            }
        }
        return order;
    }

    /** Distortions {@code [run][width]}, summed over the heads and the channels of a run. */
    private static double[][] runDistortions(double[][][] distortions, int[] order, int runs) {
        int headDim = distortions[0].length;
        int length = headDim / runs;
        double[][] sums = new double[runs][WIDTHS.length];
        for (int i = 0; i < order.length; ++i) {
            double[] ofChannel = distortions[order[i] / headDim][order[i] % headDim];
            double[] ofRun = sums[i % headDim / length];
            for (int w = 0; w < WIDTHS.length; ++w) {
                ofRun[w] += ofChannel[w];
            }
        }
        return sums;
    }

    /** Chooses a width per run; among equal totals the one with the fewest bits. */
    private static int[] cheapest(double[][] distortions, int budget) {
        int runs = distortions.length;
        double[] best = new double[budget + 1]; // least distortion so far with exactly b bits
        Arrays.fill(best, Double.POSITIVE_INFINITY);
        best[0] = 0;
        int[][] chosen = new int[runs][budget + 1];
        for (int run = 0; run < runs; ++run) {
            double[] next = new double[budget + 1];
            Arrays.fill(next, Double.POSITIVE_INFINITY);
            for (int w = 0; w < WIDTHS.length; ++w) {
                for (int used = WIDTHS[w]; used <= budget; ++used) {
                    double total = best[used - WIDTHS[w]] + distortions[run][w];
                    if (total < next[used]) {
                        next[used] = total;
                        chosen[run][used] = WIDTHS[w];
                    }
                }
            }
            best = next;
        }
        int used = 0;
        for (int b = 1; b <= budget; ++b) {
            used = best[b] < best[used] ? b : used;
        }
        int[] widths = new int[runs];
        for (int run = runs - 1; run >= 0; --run) {
            widths[run] = chosen[run][used];
            used -= widths[run];
        }
        return widths;
    }

    private static void checkVariances(double[][] variances, int runs) {
        if (variances.length == 0 || variances[0].length == 0) {
            throw new IllegalArgumentException(
                    "There are no channels to allocate bits to; give at least one head with one.");
        }
        int headDim = variances[0].length;
        if (runs < 1 || headDim % runs != 0) {
            throw new IllegalArgumentException(
                    runs
                            + " runs were asked for; they must divide the "
                            + headDim
                            + " channels of a head.");
        }
        for (int head = 0; head < variances.length; ++head) {
            checkLength("Head " + head + " has variances of", variances[head].length, headDim);
            for (int c = 0; c < headDim; ++c) {
                checkValue("variance", head, c, variances[head][c]);
            }
        }
    }

    private static void checkDistortions(double[][][] distortions, double[][] variances) {
        int headDim = variances[0].length;
        if (distortions.length != variances.length) {
            throw new IllegalArgumentException(
                    "Distortions are of "
                            + distortions.length
                            + " heads, variances of "
                            + variances.length
                            + "; both must cover the layer's heads.");
        }
        for (int head = 0; head < distortions.length; ++head) {
            checkLength("Head " + head + " has distortions of", distortions[head].length, headDim);
            for (int c = 0; c < headDim; ++c) {
                if (distortions[head][c].length != WIDTHS.length) {
                    throw new IllegalArgumentException(
                            "Channel "
                                    + c
                                    + " of head "
                                    + head
                                    + " has "
                                    + distortions[head][c].length
                                    + " distortions; give one for each width of "
                                    + Arrays.toString(WIDTHS)
                                    + ".");
                }
                for (double distortion : distortions[head][c]) {
                    checkValue("distortion", head, c, distortion);
                }
            }
        }
    }

    private static void checkLength(String what, int length, int headDim) {
        if (length != headDim) {
            throw new IllegalArgumentException(
                    what + " " + length + " channels; head 0 has variances of " + headDim + ".");
        }
    }

    private static void checkValue(String what, int head, int channel, double value) {
        if (!(value >= 0 && value < Double.POSITIVE_INFINITY)) {
            throw new IllegalArgumentException(
                    "The "
                            + what
                            + " of channel "
                            + channel
                            + " of head "
                            + head
                            + " is "
                            + value
                            + "; it must be finite and not negative.");
        }
    }
}
