/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.SplittableRandom;

/**
 * A random weight in one of the checkpoints' types, and the same in double precision.
 *
 * @param type F32, F16 or BF16
 * @param rows outputs; 0 for a vector that is left out
 * @param columns inputs; 0 for a vector
 * @param values the elements, row-major
 * @param bytes the elements as stored
 */
record Matrix(String type, int rows, int columns, double[] values, ByteBuffer bytes) {

    static Matrix random(String type, int rows, int columns, SplittableRandom random) {
        int n = rows * Math.max(1, columns);
        int size = "F32".equals(type) ? 4 : 2;
        ByteBuffer bytes = ByteBuffer.allocateDirect(n * size).order(ByteOrder.LITTLE_ENDIAN);
        double[] values = new double[n];
        for (int i = 0; i < n; ++i) {
            int bits = Float.floatToIntBits((float) random.nextGaussian());
            switch (type) {
                case "F32" -> {
                    bytes.putInt(4 * i, bits);
                    values[i] = Float.intBitsToFloat(bits);
                }
                case "BF16" -> {
                    bytes.putShort(2 * i, (short) (bits >>> 16));
                    values[i] = Float.intBitsToFloat(bits & 0xffff0000);
                }
                default -> {
                    // Sign, an exponent of 2^-3 to 2^1 (or subnormal), any mantissa.
                    int exponent = random.nextInt(20) == 0 ? 0 : 12 + random.nextInt(5);
                    bytes.putShort(
                            2 * i, (short) (bits >>> 31 << 15 | exponent << 10 | bits & 0x3ff));
                    values[i] = Half.read(bytes, 2L * i);
                }
            }
        }
        return new Matrix(type, rows, columns, values, bytes);
    }

    NDArray tensor(NDManager scope) {
        Shape shape = columns == 0 ? new Shape(rows) : new Shape(rows, columns);
        if (rows == 0) {
            // A bias that is left out: no elements, any type.
            return scope.create(new Shape(0));
        }
        return Kernels.OPERATORS.wrap(scope, bytes, type, shape);
    }

    /** The product with one input row, plus a bias unless it is left out. */
    double[] times(double[] x, Matrix bias) {
        double[] out = new double[rows];
        for (int i = 0; i < rows; ++i) {
            for (int c = 0; c < columns; ++c) {
                out[i] += values[i * columns + c] * x[c];
            }
            out[i] += bias.rows == 0 ? 0 : bias.values[i];
        }
        return out;
    }

    /** What the errors of {@link #times} are measured against: the sum of absolute products. */
    double[] magnitudes(double[] x) {
        double[] out = new double[rows];
        for (int i = 0; i < rows; ++i) {
            for (int c = 0; c < columns; ++c) {
                out[i] += Math.abs(values[i * columns + c] * x[c]);
            }
        }
        return out;
    }
}
