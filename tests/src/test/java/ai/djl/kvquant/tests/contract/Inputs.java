/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.util.SplittableRandom;

/**
 * Fused projections of tokens, the same ones however they are asked for.
 *
 * @param layer the layer
 * @param kind their distribution
 * @param seed of the random numbers
 */
record Inputs(Layer layer, Kind kind, long seed) {

    /** Distributions, each hard in its own way. */
    enum Kind {
        NORMAL,
        /** Scores so far apart that one token gets almost all the weight. */
        PEAKED,
        /** Equal weights: the output is small against the values. */
        FLAT,
        /** Scores of a hundred and more. */
        LARGE_QUERIES,
        /** Some channels are far larger than the others. */
        OUTLIERS,
        /** Vectors that are constant, some in the natural and some in the rotated basis. */
        CONSTANT,
        /** All keys, and every second value, are zero. */
        ZERO,
        /** Scales below the smallest normal half. */
        TINY,
        /** In the rotated basis, values far from zero that differ little. */
        OFFSET
    }

    /** Rows of tokens [begin, end) of a sequence, [tokens, columns]. */
    float[] rows(int sequence, int begin, int end) {
        float[] rows = new float[(end - begin) * layer.columns()];
        for (int t = begin; t < end; ++t) {
            fill(rows, (t - begin) * layer.columns(), sequence, t);
        }
        return rows;
    }

    private void fill(float[] out, int offset, int sequence, int token) {
        SplittableRandom random =
                new SplittableRandom(seed * 1_000_003 + sequence * 100_000_007L + token);
        int queries = layer.heads() * layer.headDim();
        for (int i = 0; i < layer.columns(); ++i) {
            double x = random.nextGaussian();
            boolean key = i >= queries && i < queries + layer.channels();
            int channel = (i - queries) % layer.channels();
            out[offset + i] =
                    (float) (i < queries ? x * queryFactor() : stored(x, key, channel, token));
        }
    }

    private double queryFactor() {
        return switch (kind) {
            case PEAKED -> 12;
            case FLAT -> 1e-3;
            case LARGE_QUERIES -> 40;
            case TINY -> 1e5;
            case OFFSET -> 0.01;
            default -> 1;
        };
    }

    private double stored(double x, boolean key, int channel, int token) {
        StaticCodes codes = layer.keys().codes();
        double mean = key && codes != null ? codes.mean()[channel] : 0;
        return switch (kind) {
            case OUTLIERS ->
                    mean + (channel % 37 == 5 ? 30 * x + 20 : channel % 29 == 3 ? 12 * x : x);
            case CONSTANT -> constant(channel, token);
            case ZERO -> key || token % 2 == 0 ? 0 : x;
            case TINY -> 3e-6 * x;
            case OFFSET -> channel % layer.headDim() == 0 ? 300 + x : 0.02 * x;
            default -> mean + x;
        };
    }

    /** A single non-zero channel becomes constant when it is rotated. */
    private double constant(int channel, int token) {
        return switch (token % 4) {
            case 0 -> channel % layer.headDim() == 0 ? 3.7 : 0;
            case 1 -> channel % layer.headDim() == 0 ? -2.3 : 0;
            case 2 -> 0.6;
            default -> -0.3;
        };
    }
}
