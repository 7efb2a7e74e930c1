/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import java.util.Arrays;

/**
 * Weighted values on a line, ascending and distinct, as prefix sums.
 *
 * <p>Up to a limit the points are the values themselves. Beyond it, values that lie close together
 * become one point at their weighted mean: a point ends where it has gathered its share of the
 * weight or of the range, so that neither a dense middle nor long tails lose detail.
 */
final class WeightedPoints {

    private static final int FINE_BINS = 1 << 16;

    private final int size;
    private final double origin;

    /** Sums of weight, weight * y and weight * y^2 of the first n points; y is about the origin. */
    private final double[] weights;

    private final double[] sums;
    private final double[] squares;

    private WeightedPoints(double[] pointWeights, double[] pointSums, int size, double origin) {
        this.size = size;
        this.origin = origin;
        weights = new double[size + 1];
        sums = new double[size + 1];
        squares = new double[size + 1];
        for (int i = 0; i < size; ++i) {
            double y = pointSums[i] / pointWeights[i];
            weights[i + 1] = weights[i] + pointWeights[i];
            sums[i + 1] = sums[i] + pointSums[i];
            squares[i + 1] = squares[i] + pointSums[i] * y;
        }
    }

    /**
     * Returns the points of values; those of weight 0 count for nothing.
     *
     * @param limit the most points, about; as many values stay exact
     */
    static WeightedPoints of(float[] values, float[] weights, int limit) {
        check(values, weights);
        return values.length <= limit ? exact(values, weights) : merged(values, weights, limit);
    }

    private static void check(float[] values, float[] weights) {
        if (values.length != weights.length) {
            throw new IllegalArgumentException(
                    values.length
                            + " values have "
                            + weights.length
                            + " weights; give one weight for each value.");
        }
        boolean any = false;
        for (int i = 0; i < values.length; ++i) {
            if (!Float.isFinite(values[i])) {
                throw new IllegalArgumentException(
                        "Value " + i + " is " + values[i] + "; values must be finite.");
            }
            if (!(weights[i] >= 0 && weights[i] <= Float.MAX_VALUE)) {
                throw new IllegalArgumentException(
                        "Weight "
                                + i
                                + " is "
                                + weights[i]
                                + "; weights must be finite and not negative.");
            }
            any |= weights[i] > 0;
        }
        if (!any) {
            throw new IllegalArgumentException(
                    "None of " + values.length + " values has a positive weight; one must.");
        }
    }

    private static WeightedPoints exact(float[] values, float[] weights) {
        long[] keys = new long[values.length];
        for (int i = 0; i < keys.length; ++i) {
            int raw = Float.floatToIntBits(values[i] + 0f); // one zero only
            int ordered = raw ^ (raw >> 31 & 0x7fffffff); // ints in the order of the floats
            keys[i] = (long) ordered << 32 | i;
        }
        Arrays.sort(keys);
        double[] pointWeights = new double[keys.length];
        double[] pointSums = new double[keys.length];
        int last = -1;
        float lastValue = Float.NaN;
        for (long key : keys) {
            int i = (int) key;
            if (weights[i] > 0) {
                if (values[i] != lastValue) {
                    lastValue = values[i];
                    ++last;
                }
                pointWeights[last] += weights[i];
                pointSums[last] += (double) weights[i] * values[i];
            }
        }
        return about(pointWeights, pointSums, last + 1);
    }

    private static WeightedPoints merged(float[] values, float[] weights, int limit) {
        double low = Double.POSITIVE_INFINITY;
        double high = Double.NEGATIVE_INFINITY;
        for (int i = 0; i < values.length; ++i) {
            if (weights[i] > 0) {
                low = Math.min(low, values[i]);
                high = Math.max(high, values[i]);
            }
        }
        double scale = high > low ? FINE_BINS / (high - low) : 0;
        double[] binWeights = new double[FINE_BINS];
        double[] binSums = new double[FINE_BINS];
        double total = 0;
        for (int i = 0; i < values.length; ++i) {
            if (weights[i] > 0) {
                int bin = Math.min(FINE_BINS - 1, (int) ((values[i] - low) * scale));
                binWeights[bin] += weights[i];
                binSums[bin] += (double) weights[i] * values[i];
                total += weights[i];
            }
        }
        int points = mergeNeighbours(binWeights, binSums, 2 * total / limit, limit);
        return about(binWeights, binSums, points);
    }

    /** Merges neighbouring bins in place and returns how many points they made. */
    private static int mergeNeighbours(double[] weights, double[] sums, double most, int limit) {
        int widest = Math.max(1, 2 * FINE_BINS / limit);
        int points = 0;
        double weight = 0;
        double sum = 0;
        int first = 0;
        for (int bin = 0; bin < FINE_BINS; ++bin) {
            weight += weights[bin];
            sum += sums[bin];
            if (weight >= most || bin - first + 1 >= widest || bin == FINE_BINS - 1) {
                if (weight > 0) {
                    weights[points] = weight;
                    sums[points++] = sum;
                }
                weight = 0;
                sum = 0;
                first = bin + 1;
            }
        }
        return points;
    }

    /** Moves the origin to the weighted mean, where differences of squares lose the least. */
    private static WeightedPoints about(double[] weights, double[] sums, int size) {
        double total = 0;
        double sum = 0;
        for (int i = 0; i < size; ++i) {
            total += weights[i];
            sum += sums[i];
        }
        double origin = sum / total;
        for (int i = 0; i < size; ++i) {
            sums[i] -= origin * weights[i];
        }
        return new WeightedPoints(weights, sums, size, origin);
    }

    int size() {
        return size;
    }

    /** The weighted squared distance of a run of points from their mean. */
    double cost(int from, int to) {
        double sum = sums[to] - sums[from];
        double cost = squares[to] - squares[from] - sum * sum / (weights[to] - weights[from]);
        return Math.max(0, cost);
    }

    /** The weighted mean of a run of points. */
    float mean(int from, int to) {
        return (float) (origin + (sums[to] - sums[from]) / (weights[to] - weights[from]));
    }
}
