/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import java.util.Comparator;
import java.util.stream.IntStream;

/**
 * RotateKV's order of rotated channels (section 3.2): ascending by mean, within each group of heads
 * that are rotated together, so that channels of similar offset share a scale and zero.
 */
record RotatedOrderFit() implements KeyFit {

    @Override
    public void write(Calibration.Builder out, int layer, LayerSamples samples) {
        int headDim = samples.geometry().headDim();
        int heads = samples.geometry().rotationHeads();
        float[] mean = samples.keyMean().toFloatArray();
        for (int first = 0; first < mean.length; first += heads * headDim) {
            rotate(mean, first, heads, headDim);
        }
        int group = heads * headDim;
        int[] order =
                IntStream.range(0, mean.length)
                        .boxed()
                        .sorted(
                                Comparator.<Integer>comparingInt(c -> c / group)
                                        .thenComparingDouble(c -> mean[c]))
                        .mapToInt(Integer::intValue)
                        .toArray();
        out.put(layer, "keys.order", order);
    }

    /** The rotation of the operators' rotation.h, of one group of heads. */
    private static void rotate(float[] x, int first, int heads, int headDim) {
        for (int half = 1; half < headDim; half *= 2) {
            for (int i = first; i < first + heads * headDim; ++i) {
                if ((i - first) % (2 * half) < half) {
                    float a = x[i];
                    float b = x[i + half];
                    x[i] = a + b;
                    x[i + half] = a - b;
                }
            }
        }
        double[][] mix = mixing(heads);
        double scale = 1 / Math.sqrt(headDim);
        double[] column = new double[heads];
        for (int c = 0; c < headDim; ++c) {
            for (int h = 0; h < heads; ++h) {
                column[h] = 0;
                for (int k = 0; k < heads; ++k) {
                    column[h] += mix[h][k] * x[first + k * headDim + c] * scale;
                }
            }
            for (int h = 0; h < heads; ++h) {
                x[first + h * headDim + c] = (float) column[h];
            }
        }
    }

    /** Hadamard for 1, 2 and 4 heads, I - (2/3) J for 3. */
    private static double[][] mixing(int heads) {
        double[][] mix = new double[heads][heads];
        for (int i = 0; i < heads; ++i) {
            for (int k = 0; k < heads; ++k) {
                mix[i][k] =
                        heads == 3
                                ? (i == k ? 1.0 : 0.0) - 2.0 / 3
                                : (Integer.bitCount(i & k) % 2 == 0 ? 1 : -1) / Math.sqrt(heads);
            }
        }
        return mix;
    }
}
