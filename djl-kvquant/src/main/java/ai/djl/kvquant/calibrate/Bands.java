/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;

/**
 * Bands of a head: neighbouring pairs of channels that RoPE turns together, i and i + headDim / 2.
 */
final class Bands {

    private Bands() {}

    /**
     * The blocks of matrices of heads that belong to bands.
     *
     * @param heads {@code [heads, headDim, headDim]}, FLOAT64
     * @param width channels of a band
     * @return {@code [heads * headDim / width, width, width]}
     */
    static NDArray split(NDArray heads, int width) {
        int headDim = Math.toIntExact(heads.getShape().get(1));
        double[] from = heads.toDoubleArray();
        double[] to = new double[from.length / headDim * width];
        for (int i = 0; i < to.length; ++i) {
            to[i] = from[place(i, width, headDim)];
        }
        return create(heads.getManager(), to, width);
    }

    /**
     * Matrices of heads that have the given blocks and are 0 elsewhere.
     *
     * @param blocks {@code [heads * headDim / width, width, width]}, FLOAT64
     * @param headDim channels of a head
     * @return {@code [heads, headDim, headDim]}
     */
    static NDArray join(NDArray blocks, int headDim) {
        int width = Math.toIntExact(blocks.getShape().get(1));
        double[] from = blocks.toDoubleArray();
        double[] to = new double[from.length / width * headDim];
        for (int i = 0; i < from.length; ++i) {
            to[place(i, width, headDim)] = from[i];
        }
        return create(blocks.getManager(), to, headDim);
    }

    private static NDArray create(NDManager manager, double[] matrices, int n) {
        return manager.create(matrices, new Shape(matrices.length / (n * n), n, n));
    }

    /** Where an element of the blocks is among the elements of the heads. */
    private static int place(int i, int width, int headDim) {
        int block = i / (width * width);
        int bands = headDim / width;
        int row = channel(block % bands, i / width % width, width, headDim);
        int column = channel(block % bands, i % width, width, headDim);
        return (block / bands * headDim + row) * headDim + column;
    }

    private static int channel(int band, int i, int width, int headDim) {
        int half = width / 2;
        return band * half + (i < half ? i : headDim / 2 + i - half);
    }
}
