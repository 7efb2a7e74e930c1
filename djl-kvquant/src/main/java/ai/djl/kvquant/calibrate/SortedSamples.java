/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

/**
 * The samples of one channel, prepared once so that a quantizer of any width is fitted fast.
 *
 * <p>Equally spaced levels cut the sorted samples into one run per level. With prefix sums of the
 * samples and of their squares, the error of a candidate costs one binary search per level instead
 * of one step per sample.
 */
final class SortedSamples {

    /** The grid of recipes: half-ranges from all of the samples' down to this part of it. */
    private static final double SMALLEST_RANGE = 0.04;

    private static final int CANDIDATES = 24;
    private static final double RATIO = Math.pow(SMALLEST_RANGE, 1.0 / (CANDIDATES - 1));

    /** From half a level on, ends of the range are moved by less and less. */
    private static final int MOVES = 6;

    private static final int[][] DIRECTIONS = {
        {-1, 0}, {1, 0}, {0, -1}, {0, 1}, {-1, -1}, {1, 1}, {-1, 1}, {1, -1}
    };

    /** Beyond, moves cost more than they gain. */
    private static final int MOST_MOVED_LEVELS = 16;

    private static final int REGRESSIONS = 4;
    private static final double LEAST_GAIN = 1e-4;

    private final float[] sorted;
    private final double mean;

    /**
     * Sums of the weights of the first n samples, of the samples and of their squares, about the
     * mean so that nothing cancels.
     */
    private final double[] weights;

    private final double[] sums;

    private final double[] squares;

    /** Samples that matter alike. */
    SortedSamples(float[] samples) {
        this(samples, null);
    }

    /**
     * Samples with weights.
     *
     * @param samples the samples
     * @param weight how much the squared error of each matters, not negative, some positive; null:
     *     all alike
     */
    SortedSamples(float[] samples, double[] weight) {
        int n = samples.length;
        if (n == 0) {
            throw new IllegalArgumentException(
                    "There are no samples to fit a quantizer to; give at least one.");
        }
        int[] order = RadixSort.order(samples);
        sorted = new float[n];
        weights = new double[n + 1];
        double total = 0;
        for (int i = 0; i < n; ++i) {
            sorted[i] = samples[order[i]];
            double w = weight == null ? 1 : weight[order[i]];
            weights[i + 1] = weights[i] + w;
            total += w * sorted[i];
        }
        checkFinite(samples);
        mean = total / weights[n];
        sums = new double[n + 1];
        squares = new double[n + 1];
        for (int i = 0; i < n; ++i) {
            double y = sorted[i] - mean;
            double w = weights[i + 1] - weights[i];
            sums[i + 1] = sums[i] + w * y;
            squares[i + 1] = squares[i] + w * y * y;
        }
    }

    private void checkFinite(float[] samples) {
        // infinities sort to the ends and NaN to the end
        if (Float.isFinite(sorted[0]) && Float.isFinite(sorted[sorted.length - 1])) {
            return;
        }
        for (int i = 0; i < samples.length; ++i) {
            if (!Float.isFinite(samples[i])) {
                throw new IllegalArgumentException(
                        "Sample "
                                + i
                                + " is "
                                + samples[i]
                                + "; a quantizer is fitted to finite"
                                + " numbers only.");
            }
        }
    }

    /** Returns the quantizer of least mean squared error. */
    UniformQuantizer.Fit fit(int bits) {
        UniformQuantizer.checkBits(bits);
        int n = sorted.length;
        if (bits == 0) {
            return new UniformQuantizer.Fit(
                    UniformQuantizer.DROPPED, squares[n] / weights[n] + mean * mean);
        }
        if (sorted[0] == sorted[n - 1]) {
            return new UniformQuantizer.Fit(new UniformQuantizer(sorted[0], 1f, bits), 0);
        }
        int levels = 1 << bits;
        Candidate best = grid(levels);
        if (levels <= MOST_MOVED_LEVELS) {
            best = moved(best, levels);
        }
        best = regressed(best, levels);
        float step = Math.max((float) best.step(), Float.MIN_NORMAL);
        UniformQuantizer quantizer = new UniformQuantizer((float) (mean + best.low()), step, bits);
        return new UniformQuantizer.Fit(quantizer, error(quantizer));
    }

    /** Tries ranges that shrink towards the mean; the widest is that of the samples. */
    private Candidate grid(int levels) {
        Candidate best = part(1, levels);
        double part = 1;
        for (int i = 1; i < CANDIDATES; ++i) {
            part *= RATIO;
            if (clipped(part) >= best.error()) {
                break; // a smaller range clips more still
            }
            best = better(best, part(part, levels));
        }
        return best;
    }

    /** Moves either end of the levels or both as long as the error falls, then by half as much. */
    private Candidate moved(Candidate start, int levels) {
        Candidate best = start;
        double move = start.step();
        for (int i = 0; i < MOVES; ++i) {
            move /= 2;
            Candidate before;
            do {
                before = best;
                double low = before.low();
                double high = low + (levels - 1) * before.step();
                for (int[] direction : DIRECTIONS) {
                    double newLow = low + direction[0] * move;
                    double newHigh = high + direction[1] * move;
                    if (newLow < newHigh) {
                        best = better(best, range(newLow, newHigh, levels));
                    }
                }
            } while (best.error() < before.error() * (1 - LEAST_GAIN));
        }
        return best;
    }

    /** Alternates between codes for levels and levels for codes as long as the error falls. */
    private Candidate regressed(Candidate start, int levels) {
        Candidate best = start;
        for (int i = 0; i < REGRESSIONS; ++i) {
            Candidate next = best.regressed(this, levels);
            if (next == null || next.error() >= best.error()) {
                break;
            }
            boolean settled = next.error() > best.error() * (1 - LEAST_GAIN);
            best = next;
            if (settled) {
                break;
            }
        }
        return best;
    }

    private static Candidate better(Candidate one, Candidate other) {
        return other.error() < one.error() ? other : one;
    }

    /** The squared error of what lies outside a range, which no levels inside can lower. */
    private double clipped(double part) {
        int n = sorted.length;
        double low = part * (sorted[0] - mean);
        double high = part * (sorted[n - 1] - mean);
        return error(0, firstAbove(0, low), low) + error(firstAbove(0, high), n, high);
    }

    private Candidate part(double part, int levels) {
        double low = sorted[0] - mean;
        double high = sorted[sorted.length - 1] - mean;
        return range(part * low, part * high, levels);
    }

    private Candidate range(double low, double high, int levels) {
        return candidate(low, (high - low) / (levels - 1), levels);
    }

    /** Assigns the samples to levels that start at low (about the mean). */
    private Candidate candidate(double low, double step, int levels) {
        int n = sorted.length;
        double error = 0;
        double codes = 0;
        double codeSquares = 0;
        double products = 0;
        int from = 0;
        for (int code = 0; code < levels && from < n; ++code) {
            int to = code == levels - 1 ? n : firstAbove(from, low + (code + 0.5) * step);
            error += error(from, to, low + code * step);
            double weight = weights[to] - weights[from];
            codes += code * weight;
            codeSquares += code * code * weight;
            products += code * (sums[to] - sums[from]);
            from = to;
        }
        return new Candidate(low, step, error, codes, codeSquares, products);
    }

    /** The weighted squared error of a run of samples that share a level (about the mean). */
    private double error(int from, int to, double level) {
        return squares[to]
                - squares[from]
                - 2 * level * (sums[to] - sums[from])
                + level * level * (weights[to] - weights[from]);
    }

    /** Index of the first sample above a bound (about the mean), from an index on. */
    private int firstAbove(int from, double bound) {
        double limit = bound + mean;
        int low = from;
        int high = sorted.length;
        while (low < high) {
            int middle = (low + high) >>> 1;
            if (sorted[middle] > limit) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        return low;
    }

    /**
     * The mean squared error of a quantizer by its own float arithmetic. Its codes ascend with the
     * samples, so that searching for where each ends finds those of all samples.
     */
    private double error(UniformQuantizer quantizer) {
        double error = 0;
        int from = 0;
        while (from < sorted.length) {
            int code = quantizer.encode(sorted[from]);
            int low = from + 1;
            int high = sorted.length;
            while (low < high) {
                int middle = (low + high) >>> 1;
                if (quantizer.encode(sorted[middle]) > code) {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
            error += error(from, low, quantizer.decode(code) - mean);
            from = low;
        }
        return Math.max(0, error) / weights[sorted.length];
    }

    /**
     * Levels, their error, and the sums that a regression of the samples on their codes needs.
     *
     * @param low the level of code 0 about the mean
     * @param step the distance of two levels
     * @param error the sum of the squared errors
     * @param codes the sum of the codes
     * @param codeSquares the sum of the squared codes
     * @param products the sum of code times sample about the mean
     */
    private record Candidate(
            double low,
            double step,
            double error,
            double codes,
            double codeSquares,
            double products) {

        /** The best levels for these codes, or null where only one level is in use. */
        Candidate regressed(SortedSamples samples, int levels) {
            int n = samples.sorted.length;
            double weight = samples.weights[n];
            double spread = codeSquares - codes * codes / weight;
            // the samples' sum about their mean is 0 up to rounding
            double newStep = (products - codes * samples.sums[n] / weight) / spread;
            if (!(spread > 0 && newStep > 0)) {
                return null;
            }
            double newLow = (samples.sums[n] - newStep * codes) / weight;
            return samples.candidate(newLow, newStep, levels);
        }
    }
}
