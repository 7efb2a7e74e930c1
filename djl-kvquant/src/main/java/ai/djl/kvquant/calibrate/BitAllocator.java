/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;

/**
 * Gives the channels of keys their widths.
 *
 * <p>The channels of each head are sorted by descending weighted variance and cut into runs of
 * equal length. All channels of a run have the same width, and the runs of all heads have the same
 * schedule of widths, so that pages are uniform and vector lanes stay full. Layers that matter more
 * get more bits than others.
 */
final class BitAllocator {

    private static final int[] WIDTHS = {0, 1, 2, 3, 4, 8};

    /** A layer has at least half and at most twice its share of the bits. */
    private static final int SPREAD = 2;

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
     * Returns the schedules of least total distortion of several layers, which share a budget. Each
     * layer gets between half and twice its share of the bits. It is exact: the best total for
     * every number of bits is carried from run to run, and from layer to layer.
     *
     * @param distortions weighted distortions {@code [layer][head][channel][width]}, in the order
     *     of {@link #widths}, comparable between layers
     * @param variances weighted variances {@code [layer][head][channel]}
     * @param runs the runs of each head; they must divide its channels
     * @param bits the bits per channel on average over all layers, 0 to 8
     * @return an allocation for each layer
     */
    static List<Allocation> allocate(
            List<double[][][]> distortions, List<double[][]> variances, int runs, double bits) {
        List<int[]> orders = new ArrayList<>();
        List<Schedules> layers = new ArrayList<>();
        int share = budget(runs, bits);
        int most = Math.min(SPREAD * share, WIDTHS[WIDTHS.length - 1] * runs);
        for (int layer = 0; layer < distortions.size(); ++layer) {
            checkVariances(variances.get(layer), runs);
            checkDistortions(distortions.get(layer), variances.get(layer));
            int[] order = order(variances.get(layer));
            orders.add(order);
            layers.add(new Schedules(runDistortions(distortions.get(layer), order, runs), most));
        }
        int[] used = shares(layers, share / SPREAD, most, share * layers.size());
        return IntStream.range(0, used.length)
                .mapToObj(i -> new Allocation(orders.get(i), layers.get(i).widths(used[i])))
                .toList();
    }

    /** Divides a budget between layers: the bits of each, of least total distortion. */
    private static int[] shares(List<Schedules> layers, int least, int most, int budget) {
        double[] best = new double[budget + 1];
        Arrays.fill(best, Double.POSITIVE_INFINITY);
        best[0] = 0;
        int[][] chosen = new int[layers.size()][budget + 1];
        for (int layer = 0; layer < layers.size(); ++layer) {
            double[] next = new double[budget + 1];
            Arrays.fill(next, Double.POSITIVE_INFINITY);
            for (int own = least; own <= most; ++own) {
                double cost = layers.get(layer).totals[own];
                for (int used = own; used <= budget; ++used) {
                    if (best[used - own] + cost < next[used]) {
                        next[used] = best[used - own] + cost;
                        chosen[layer][used] = own;
                    }
                }
            }
            best = next;
        }
        int used = smallest(best);
        int[] shares = new int[layers.size()];
        for (int layer = shares.length - 1; layer >= 0; --layer) {
            shares[layer] = chosen[layer][used];
            used -= shares[layer];
        }
        return shares;
    }

    /** Bits of all runs; what was meant as a whole number of bits stays one. */
    private static int budget(int runs, double bits) {
        if (!(bits >= 0 && bits <= 8)) {
            throw new IllegalArgumentException(
                    "An average of " + bits + " bits was asked for; allowed are 0 to 8.");
        }
        return (int) Math.floor(bits * runs + 1e-6);
    }

    private static int smallest(double[] values) {
        int smallest = 0;
        for (int i = 1; i < values.length; ++i) {
            smallest = values[i] < values[smallest] ? i : smallest;
        }
        return smallest;
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

    /** The best widths of a layer's runs for every number of bits. */
    private static final class Schedules {

        /** Least distortion with exactly so many bits; infinite if no widths add up to them. */
        private final double[] totals;

        /** Width of the last run of the best schedule of the first runs, by bits. */
        private final int[][] chosen;

        /**
         * Finds them.
         *
         * @param distortions {@code [run][width]}
         * @param most bits at most
         */
        Schedules(double[][] distortions, int most) {
            int runs = distortions.length;
            double[] best = new double[most + 1];
            Arrays.fill(best, Double.POSITIVE_INFINITY);
            best[0] = 0;
            chosen = new int[runs][most + 1];
            for (int run = 0; run < runs; ++run) {
                double[] next = new double[most + 1];
                Arrays.fill(next, Double.POSITIVE_INFINITY);
                for (int w = 0; w < WIDTHS.length; ++w) {
                    for (int used = WIDTHS[w]; used <= most; ++used) {
                        double total = best[used - WIDTHS[w]] + distortions[run][w];
                        if (total < next[used]) {
                            next[used] = total;
                            chosen[run][used] = WIDTHS[w];
                        }
                    }
                }
                best = next;
            }
            totals = best;
        }

        /** The width of each run, so many bits in all. */
        int[] widths(int bits) {
            int[] widths = new int[chosen.length];
            int used = bits;
            for (int run = widths.length - 1; run >= 0; --run) {
                widths[run] = chosen[run][used];
                used -= widths[run];
            }
            return widths;
        }
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
