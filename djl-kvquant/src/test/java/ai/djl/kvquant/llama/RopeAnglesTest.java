/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import org.junit.jupiter.api.Test;

class RopeAnglesTest {

    @Test
    void rowsAreThoseOfThePositionsInTheirOrder() {
        double[] frequencies = {1, 0.1, 0.01};
        int[] positions = {7, 0, 7, 3};
        RopeAngles angles = new RopeAngles(frequencies, 8);
        assertEquals(8, angles.positions());
        try (NDManager manager = NDManager.newBaseManager("PyTorch")) {
            Shape shape = new Shape(positions.length, 1, frequencies.length);
            assertEquals(shape, angles.cos(manager, positions).getShape());
            float[] cos = angles.cos(manager, positions).toFloatArray();
            float[] sin = angles.sin(manager, positions).toFloatArray();
            for (int i = 0; i < cos.length; ++i) {
                double angle = positions[i / 3] * frequencies[i % 3];
                assertEquals((float) Math.cos(angle), cos[i]);
                assertEquals((float) Math.sin(angle), sin[i]);
            }
        }
    }
}
