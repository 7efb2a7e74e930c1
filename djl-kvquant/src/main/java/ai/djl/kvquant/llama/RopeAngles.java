/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;

/** A table of RoPE's angles at the positions from 0 on. Immutable. */
public final class RopeAngles {

    private final int half;
    private final float[] cos;
    private final float[] sin;

    /**
     * Computes the angles.
     *
     * @param inverseFrequencies the angle between two positions, for each pair of channels
     * @param positions the number of positions
     */
    public RopeAngles(double[] inverseFrequencies, int positions) {
        half = inverseFrequencies.length;
        cos = new float[positions * half];
        sin = new float[positions * half];
        for (int i = 0; i < cos.length; ++i) {
            double angle = i / half * inverseFrequencies[i % half];
            cos[i] = (float) Math.cos(angle);
            sin[i] = (float) Math.sin(angle);
        }
    }

    /**
     * Returns the number of positions.
     *
     * @return the number of positions
     */
    public int positions() {
        return cos.length / half;
    }

    /**
     * Returns the cosines of angles.
     *
     * @param manager the manager that the result is attached to
     * @param positions the positions
     * @return FLOAT32 {@code [positions, 1, headDim / 2]}
     */
    public NDArray cos(NDManager manager, int[] positions) {
        return rows(manager, cos, positions);
    }

    /**
     * Returns the sines of angles.
     *
     * @param manager the manager that the result is attached to
     * @param positions the positions
     * @return FLOAT32 {@code [positions, 1, headDim / 2]}
     */
    public NDArray sin(NDManager manager, int[] positions) {
        return rows(manager, sin, positions);
    }

    private NDArray rows(NDManager manager, float[] table, int[] positions) {
        float[] values = new float[positions.length * half];
        for (int i = 0; i < positions.length; ++i) {
            System.arraycopy(table, positions[i] * half, values, i * half, half);
        }
        return manager.create(values, new Shape(positions.length, 1, half));
    }
}
