/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Comparator;
import java.util.stream.IntStream;

/** In which order RotateKV takes the rotated channels whose runs share a scale and zero. */
enum KeyOrder {
    /** As they are numbered. */
    NATURAL,
    /** Ascending by mean within the heads that are rotated together (section 3.2). */
    GROUP,
    /** Ascending by mean over all heads of the layer, as in the paper. */
    LAYER;

    /**
     * Returns the order of a layer.
     *
     * @param mean of each channel before the rotation
     * @param headDim channels of a head
     * @param heads kv heads that are rotated together
     * @return the channel at each place; null: natural
     */
    int[] channels(float[] mean, int headDim, int heads) {
        if (this == NATURAL) {
            return null;
        }
        double[] rotated = rotate(mean, headDim, heads);
        int range = this == LAYER ? mean.length : heads * headDim;
        return IntStream.range(0, mean.length)
                .boxed()
                .sorted(
                        Comparator.<Integer>comparingInt(c -> c / range)
                                .thenComparingDouble(c -> rotated[c]))
                .mapToInt(Integer::intValue)
                .toArray();
    }

    /** The rotation of the operators' rotation.h. */
    private static double[] rotate(float[] x, int headDim, int heads) {
        double[] transformed = new double[x.length];
        double scale = 1 / Math.sqrt(headDim);
        for (int i = 0; i < x.length; ++i) {
            int first = i / headDim * headDim;
            for (int c = 0; c < headDim; ++c) {
                boolean even = Integer.bitCount(c & (i - first)) % 2 == 0;
                transformed[i] += (even ? scale : -scale) * x[first + c];
            }
        }
        double[] mixed = new double[x.length];
        int group = heads * headDim;
        for (int i = 0; i < x.length; ++i) {
            int head = i % group / headDim;
            for (int h = 0; h < heads; ++h) {
                mixed[i] += mixing(heads, head, h) * transformed[i + (h - head) * headDim];
            }
        }
        return mixed;
    }

    /** Hadamard for 1, 2 and 4 heads, I - (2/3) J for 3. */
    private static double mixing(int heads, int row, int column) {
        if (heads == 3) {
            return (row == column ? 1.0 : 0.0) - 2.0 / 3;
        }
        return (Integer.bitCount(row & column) % 2 == 0 ? 1 : -1) / Math.sqrt(heads);
    }
}
