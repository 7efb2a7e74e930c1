/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.engine.Engine;
import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.kvquant.cache.Calibration;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.Arrays;
import java.util.Map;

/**
 * Projections of a layer made up for tests, and what they are after RoPE in double precision.
 *
 * @param kvHeads the kv heads
 * @param headDim channels of a head
 * @param frequencies RoPE's angle per position of each pair
 * @param queries {@code [tokens][heads * headDim]}
 * @param keys {@code [tokens][kvHeads * headDim]}
 */
record TinySamples(
        int kvHeads, int headDim, double[] frequencies, float[][] queries, float[][] keys) {

    static final NDManager MANAGER = Engine.getEngine("PyTorch").newBaseManager();

    /** Not 0: calibration leaves the first tokens of a text out. */
    private static final int FIRST_POSITION = 4;

    /** Values that would spoil everything if they were taken for keys. */
    private static final float VALUE = 1e6f;

    /** RoPE's usual frequencies. */
    static double[] usualFrequencies(int headDim) {
        double[] frequencies = new double[headDim / 2];
        for (int i = 0; i < frequencies.length; ++i) {
            frequencies[i] = Math.pow(10_000, -2.0 * i / headDim);
        }
        return frequencies;
    }

    int tokens() {
        return keys.length;
    }

    int heads() {
        return queries[0].length / headDim;
    }

    int channels() {
        return kvHeads * headDim;
    }

    LayerSamples in(NDManager scope) {
        int rowHeads = heads() + 2 * kvHeads;
        float[] qkv = new float[tokens() * rowHeads * headDim];
        int half = headDim / 2;
        float[] cos = new float[tokens() * half];
        float[] sin = new float[tokens() * half];
        Arrays.fill(qkv, VALUE);
        for (int t = 0; t < tokens(); ++t) {
            int row = t * rowHeads * headDim;
            System.arraycopy(queries[t], 0, qkv, row, queries[t].length);
            System.arraycopy(keys[t], 0, qkv, row + queries[t].length, keys[t].length);
            for (int i = 0; i < half; ++i) {
                cos[t * half + i] = (float) Math.cos(angle(t, i));
                sin[t * half + i] = (float) Math.sin(angle(t, i));
            }
        }
        CacheGeometry geometry =
                new CacheGeometry(1, heads(), kvHeads, headDim, 1, frequencies, 1 << 16);
        Shape angles = new Shape(tokens(), 1, half);
        return LayerSamples.of(
                geometry,
                scope.create(qkv, new Shape(tokens(), rowHeads, headDim)),
                scope.create(cos, angles),
                scope.create(sin, angles));
    }

    /** What a fit writes for these samples, as layer 0. */
    Calibration fitted(KeyFit fit) {
        return fitted(fit, null);
    }

    /** The same with gradients with respect to keys, {@code [tokens][channels]}, if not null. */
    Calibration fitted(KeyFit fit, float[][] gradients) {
        Calibration.Builder out = new Calibration.Builder(Map.of());
        try (NDManager scope = MANAGER.newSubManager()) {
            LayerSamples samples = in(scope);
            if (gradients != null) {
                NDArray array = scope.create(gradients).reshape(samples.keys().getShape());
                samples = samples.with(new LayerSamples.Gradients(array, array));
            }
            fit.write(out, 0, samples);
            fit.finish(out);
        }
        return out.build();
    }

    private double angle(int token, int pair) {
        return (FIRST_POSITION + token) * frequencies[pair];
    }

    /** All heads of a row turned to the token's position: pairs as complex numbers. */
    double[] turned(double[] row, int token) {
        double[] turned = new double[row.length];
        int half = headDim / 2;
        for (int first = 0; first < row.length; first += headDim) {
            for (int i = 0; i < half; ++i) {
                double radius = Math.hypot(row[first + i], row[first + i + half]);
                double angle = Math.atan2(row[first + i + half], row[first + i]) + angle(token, i);
                turned[first + i] = radius * Math.cos(angle);
                turned[first + i + half] = radius * Math.sin(angle);
            }
        }
        return turned;
    }

    static double[] doubles(float[] row) {
        double[] doubles = new double[row.length];
        for (int i = 0; i < row.length; ++i) {
            doubles[i] = row[i];
        }
        return doubles;
    }

    double[] keyMean() {
        double[] mean = new double[channels()];
        for (float[] row : keys) {
            for (int c = 0; c < mean.length; ++c) {
                mean[c] += (double) row[c] / tokens();
            }
        }
        return mean;
    }

    /** Keys minus a mean, {@code [tokens][channels]}. */
    double[][] centred(float[] mean) {
        double[][] centred = new double[tokens()][channels()];
        for (int t = 0; t < tokens(); ++t) {
            for (int c = 0; c < channels(); ++c) {
                centred[t][c] = (double) keys[t][c] - mean[c];
            }
        }
        return centred;
    }

    /** A value after coding: the definition of static codes. */
    static double coded(double value, double start, double step, int width) {
        if (width == 0) {
            return 0;
        }
        double code = Math.rint((value - start) / step);
        return start + step * Math.max(0, Math.min((1 << width) - 1, code));
    }
}
