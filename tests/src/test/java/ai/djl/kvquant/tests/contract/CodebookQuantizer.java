/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.stream.IntStream;

/**
 * Codes of a codebook by their definition. Keys: outliers are elements outside [start - step, start
 * + step] of their channel, at most as many as there are slots, those that lie farthest outside.
 * Values: outliers are the smallest and the largest elements, half of the slots each, one more
 * where its absence narrows the range more; start and step, halves, are the middle and half the
 * width of what is left. Of equal elements the lowest channels are chosen. All elements get the
 * code of the nearest level, the lower one of two.
 *
 * <p>A decision may differ where it lies within the error of fp32; nowhere else.
 */
class CodebookQuantizer {

    private static final double FP32 = 4e-7;
    private static final double TIE = 1e-12;
    private static final double LARGEST_HALF = 65504;

    private final PageFormat format;
    private final Codebook codebook;
    private long checked;
    private long deviations;

    CodebookQuantizer(PageFormat format) {
        this.format = format;
        codebook = format.side.codebook();
    }

    final long codes() {
        return checked;
    }

    final long deviations() {
        return deviations;
    }

    /** What is wrong with the stored form of x, [channels], all halves; null: nothing. */
    final String problem(double[] x, ByteBuffer page, int slot) {
        TreeMap<Integer, Double> outliers = new TreeMap<>();
        for (int i = 0; i < format.outliers(); ++i) {
            int channel = format.outlierChannel(page, slot, i);
            double value = format.outlier(page, slot, i);
            if (channel == Codebook.EMPTY) {
                if (value != 0) {
                    return "an empty slot holds " + value;
                }
            } else if (channel >= x.length || outliers.put(channel, value) != null) {
                return "outlier of channel " + channel;
            } else if (value != limited(x[channel])) {
                return "outlier " + value + " instead of " + x[channel];
            }
        }
        return codebook.steps() == null
                ? tokenProblem(x, outliers.keySet(), page, slot)
                : channelProblem(x, outliers.keySet(), page, slot);
    }

    private static double limited(double x) {
        return Math.max(-LARGEST_HALF, Math.min(LARGEST_HALF, x));
    }

    private String channelProblem(double[] x, Set<Integer> chosen, ByteBuffer page, int slot) {
        double[] relative = new double[x.length];
        for (int c = 0; c < x.length; ++c) {
            relative[c] = (x[c] - codebook.start(c)) / codebook.step(c);
            String problem = codeProblem(relative[c], format.code(page, slot, c));
            if (problem != null) {
                return "channel " + c + ": " + problem;
            }
        }
        // Beyond the range; what fp32 makes of it may be off by this much of a step.
        double nearest = Double.POSITIVE_INFINITY;
        for (int c : chosen) {
            double steps = Math.abs(relative[c]);
            if (steps < 1 - FP32) {
                return "an outlier is only " + steps + " steps from its start";
            }
            nearest = Math.min(nearest, (steps * (1 + FP32) - 1) * codebook.step(c));
        }
        boolean full = chosen.size() == format.outliers();
        for (int c = 0; c < x.length && format.outliers() > 0; ++c) {
            double beyond = (Math.abs(relative[c]) * (1 - FP32) - 1) * codebook.step(c);
            if (beyond > (full ? nearest : 0) * (1 + FP32) && !chosen.contains(c)) {
                return "no outlier: " + relative[c] + " of channel " + c;
            }
        }
        return null;
    }

    private String tokenProblem(double[] x, Set<Integer> chosen, ByteBuffer page, int slot) {
        List<Set<Integer>> expected = extremes(x);
        if (!expected.contains(chosen)) {
            return "outliers " + chosen + ", not " + expected;
        }
        double low = Double.POSITIVE_INFINITY;
        double high = Double.NEGATIVE_INFINITY;
        for (int c = 0; c < x.length; ++c) {
            if (!chosen.contains(c)) {
                low = Math.min(low, limited(x[c]));
                high = Math.max(high, limited(x[c]));
            }
        }
        double step = Half.read(page, format.scaleOffset(slot, 0));
        double start = Half.read(page, format.zeroOffset(slot, 0));
        if (!isHalfOf(step, width(low, high) / 2) || !isHalfOf(start, (low + high) / 2)) {
            return "range " + start + " +- " + step + " of " + low + " to " + high;
        }
        for (int c = 0; c < x.length; ++c) {
            double relative = step == 0 ? Math.signum(x[c] - start) : (x[c] - start) / step;
            double far =
                    step == 0 && relative != 0 ? relative * Double.POSITIVE_INFINITY : relative;
            int code = format.code(page, slot, c);
            String problem =
                    step == 0 && relative == 0
                            ? code == 0 ? null : "code " + code + " of a constant"
                            : codeProblem(far, code);
            if (problem != null) {
                return "channel " + c + ": " + problem;
            }
        }
        return null;
    }

    /** What the range is made of. */
    double width(double low, double high) {
        return high - low;
    }

    /** The channels that may be chosen: one set, two if it can not be told which end is farther. */
    private List<Set<Integer>> extremes(double[] x) {
        List<Integer> left = new ArrayList<>(IntStream.range(0, x.length).boxed().toList());
        Set<Integer> chosen = new TreeSet<>();
        int each = format.outliers() / 2;
        for (int i = 0; i < each; ++i) {
            chosen.add(take(x, left, 1));
        }
        for (int i = 0; i < each; ++i) {
            chosen.add(take(x, left, -1));
        }
        if (format.outliers() % 2 == 0) {
            return List.of(chosen);
        }
        double[] rest = left.stream().mapToDouble(c -> x[c]).sorted().toArray();
        double below = rest[1] - rest[0];
        double above = rest[rest.length - 1] - rest[rest.length - 2];
        Set<Integer> lower = new HashSet<>(chosen);
        lower.add(take(x, new ArrayList<>(left), 1));
        Set<Integer> upper = new HashSet<>(chosen);
        upper.add(take(x, left, -1));
        if (Math.abs(above - below) <= FP32 * Math.max(above, below) && above != below) {
            return List.of(lower, upper);
        }
        return List.of(above > below ? upper : lower);
    }

    /** Takes the channel of the smallest sign * x, the lowest one of several. */
    private static int take(double[] x, List<Integer> left, int sign) {
        int best = left.get(0);
        for (int c : left) {
            if (sign * x[c] < sign * x[best]) {
                best = c;
            }
        }
        left.remove(Integer.valueOf(best));
        return best;
    }

    private static boolean isHalfOf(double stored, double exact) {
        double error = FP32 * Math.abs(exact);
        return stored >= Half.round(exact - error) && stored <= Half.round(exact + error);
    }

    private String codeProblem(double relative, int code) {
        ++checked;
        boolean above = code == 0 || relative > codebook.middle(code);
        boolean below =
                code == codebook.levels().length - 1 || relative <= codebook.middle(code + 1);
        if (above && below) {
            return null;
        }
        double beyond =
                above ? relative - codebook.middle(code + 1) : codebook.middle(code) - relative;
        deviations += beyond > TIE ? 1 : 0;
        return beyond <= FP32 * (1 + Math.abs(relative))
                ? null
                : "code " + code + " of " + relative + " in " + Arrays.toString(codebook.levels());
    }
}
