/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

/** How far fp32 may be from double precision. */
final class Tolerance {

    /**
     * Relative error of one head's output. Sums over channels and tokens and the exponential are
     * fp32 (6e-8 each): a score of size s has an absolute error of about 3e-7 s, which is a
     * relative error of its weight.
     */
    private static final double RELATIVE = 2e-5;

    /** Scores up to this size are covered by RELATIVE alone. */
    private static final double SMALL_SCORE = 16;

    /** Outputs that are so much smaller than what is added up are measured against that. */
    private static final double CANCELLATION = 3;

    private Tolerance() {}

    static double of(Oracle.Attention expected) {
        return RELATIVE * Math.max(1, expected.largestScore() / SMALL_SCORE);
    }

    /** What a head's relative error may be if the values that it adds up cancel. */
    static double ofHead(Oracle.Attention expected, int begin, int n) {
        double output = 0;
        double magnitude = 0;
        for (int i = begin; i < begin + n; ++i) {
            output += Math.pow(expected.output()[i], 2);
            magnitude += Math.pow(expected.magnitude()[i], 2);
        }
        double cancelled = output == 0 ? 1 : Math.sqrt(magnitude / output);
        return of(expected) * Math.max(1, cancelled / CANCELLATION);
    }

    /** Relative error of one head, ||out - ref|| / ||ref||; NaN counts as infinite. */
    static double relativeError(double[] expected, float[] actual, int begin, int offset, int n) {
        double difference = 0;
        double norm = 0;
        for (int i = 0; i < n; ++i) {
            double error = actual[offset + i] - expected[begin + i];
            difference += error * error;
            norm += expected[begin + i] * expected[begin + i];
        }
        double relative = difference == 0 ? 0 : Math.sqrt(difference / norm);
        return Double.isNaN(relative) ? Double.POSITIVE_INFINITY : relative;
    }

    /**
     * The largest |error| of one head against the largest sum of p |v|, which does not shrink where
     * values cancel.
     */
    static double weightedError(
            double[] expected, double[] magnitude, float[] actual, int begin, int offset, int n) {
        double error = 0;
        double largest = 0;
        for (int i = 0; i < n; ++i) {
            double difference = Math.abs(actual[offset + i] - expected[begin + i]);
            error =
                    Double.isNaN(difference)
                            ? Double.POSITIVE_INFINITY
                            : Math.max(error, difference);
            largest = Math.max(largest, magnitude[begin + i]);
        }
        return error == 0 ? 0 : error / largest;
    }
}
