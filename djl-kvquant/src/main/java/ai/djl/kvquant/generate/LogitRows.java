/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.types.DataType;
import java.nio.FloatBuffer;
import java.util.Arrays;

/** Reads a batch's logits. */
final class LogitRows {

    private LogitRows() {}

    /** Returns the logits of all rows, one row after the other; valid as long as the logits. */
    static FloatBuffer of(DecodingBatch batch, int vocabularySize) {
        NDArray logits = batch.logits();
        check(logits, batch.size(), vocabularySize);
        if (logits.getDevice().isGpu()) {
            try (NDArray copy = logits.toDevice(Device.cpu(), true)) {
                return FloatBuffer.wrap(copy.toFloatArray());
            }
        }
        return logits.toByteBuffer(true).asFloatBuffer();
    }

    private static void check(NDArray logits, int rows, int vocabularySize) {
        long[] shape = logits.getShape().getShape();
        long[] expected = {rows, vocabularySize};
        if (logits.getDataType() != DataType.FLOAT32 || !Arrays.equals(shape, expected)) {
            throw new IllegalStateException(
                    "The model gave logits "
                            + logits.getDataType()
                            + " "
                            + Arrays.toString(shape)
                            + " where FLOAT32 "
                            + Arrays.toString(expected)
                            + " was expected.");
        }
    }
}
