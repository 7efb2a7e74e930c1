/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.engine.EngineException;
import ai.djl.kvquant.torch.Operators.Variant;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.util.Arrays;
import java.util.SplittableRandom;
import java.util.function.IntFunction;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Linear layers of few rows in every weight type on every variant, against double precision. */
class LinearContractTest {

    /** fp32 sums against the sum of absolute products. */
    private static final double TOLERANCE = 3e-6;

    private static final double EPS = 1e-5;
    private static final int MOST_ROWS = 16;

    private final SplittableRandom random = new SplittableRandom(3);

    @AfterEach
    void restoreVariant() {
        Kernels.OPERATORS.useVariant(Kernels.OPERATORS.bestVariant());
    }

    @ParameterizedTest
    @CsvSource({
        "F32,1,1",
        "F32,3,7",
        "F32,65,129",
        "F32,96,576",
        "F16,1,1",
        "F16,5,9",
        "F16,65,129",
        "F16,96,576",
        "BF16,1,1",
        "BF16,6,17",
        "BF16,65,129",
        "BF16,96,576"
    })
    void layersFollowTheDefinition(String type, int outputs, int inputs) {
        for (int rows = 1; rows <= MOST_ROWS; ++rows) {
            for (int biasRows : new int[] {0, outputs}) {
                double[][] x = input(rows, inputs);
                Matrix weight = Matrix.random(type, outputs, inputs, random);
                Matrix up = Matrix.random(type, outputs, inputs, random);
                Matrix norm = Matrix.random(type, inputs, 0, random);
                Matrix bias = Matrix.random(type, biasRows, 0, random);
                for (Variant variant : Kernels.variants()) {
                    Kernels.OPERATORS.useVariant(variant);
                    linearAdd(x, weight, bias);
                    normQkv(x, norm, weight, up, bias);
                    normMlp(x, norm, weight, up, bias);
                    normLinear(x, norm, weight);
                }
            }
        }
    }

    private double[][] input(int rows, int columns) {
        double[][] x = new double[rows][columns];
        for (double[] row : x) {
            for (int c = 0; c < columns; ++c) {
                row[c] = (float) random.nextGaussian();
            }
        }
        return x;
    }

    private static NDArray tensor(NDManager scope, double[][] x) {
        float[] flat = new float[x.length * x[0].length];
        for (int i = 0; i < flat.length; ++i) {
            flat[i] = (float) x[i / x[0].length][i % x[0].length];
        }
        return scope.create(flat, new Shape(x.length, x[0].length));
    }

    private void linearAdd(double[][] x, Matrix weight, Matrix bias) {
        double[][] residual = input(x.length, weight.rows());
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            float[] out =
                    Kernels.run(
                                    scope,
                                    "linear_add",
                                    tensor(scope, x),
                                    weight.tensor(scope),
                                    bias.tensor(scope),
                                    tensor(scope, residual))
                            .get(0)
                            .toFloatArray();
            compare(
                    x,
                    out,
                    0,
                    weight.rows(),
                    row -> add(weight.times(x[row], bias), residual[row]),
                    row -> add(weight.magnitudes(x[row]), absolute(residual[row])));
        }
    }

    private static void normQkv(double[][] x, Matrix norm, Matrix q, Matrix k, Matrix bias) {
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            NDArray b = bias.tensor(scope);
            float[] out =
                    Kernels.run(
                                    scope,
                                    "norm_qkv",
                                    tensor(scope, x),
                                    norm.tensor(scope),
                                    EPS,
                                    q.tensor(scope),
                                    k.tensor(scope),
                                    q.tensor(scope),
                                    b,
                                    b,
                                    b)
                            .get(0)
                            .toFloatArray();
            Matrix[] parts = {q, k, q};
            for (int part = 0; part < parts.length; ++part) {
                Matrix weight = parts[part];
                compare(
                        x,
                        out,
                        part * weight.rows(),
                        3 * weight.rows(),
                        row -> weight.times(normed(x[row], norm), bias),
                        row -> weight.magnitudes(normed(x[row], norm)));
            }
        }
    }

    private static void normMlp(double[][] x, Matrix norm, Matrix gate, Matrix up, Matrix bias) {
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            NDArray b = bias.tensor(scope);
            float[] out =
                    Kernels.run(
                                    scope,
                                    "norm_mlp",
                                    tensor(scope, x),
                                    norm.tensor(scope),
                                    EPS,
                                    gate.tensor(scope),
                                    up.tensor(scope),
                                    b,
                                    b)
                            .get(0)
                            .toFloatArray();
            compare(
                    x,
                    out,
                    0,
                    gate.rows(),
                    row -> {
                        double[] h = normed(x[row], norm);
                        return silu(gate.times(h, bias), up.times(h, bias));
                    },
                    row -> {
                        // Errors of either factor times the other, whose sizes the sums bound.
                        double[] h = normed(x[row], norm);
                        double[] a = gate.magnitudes(h);
                        double[] c = up.magnitudes(h);
                        for (int i = 0; i < a.length; ++i) {
                            a[i] = 2 * (1 + a[i]) * (1 + c[i]);
                        }
                        return a;
                    });
        }
    }

    private static void normLinear(double[][] x, Matrix norm, Matrix weight) {
        Matrix none = new Matrix("F32", 0, 0, new double[0], null);
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            float[] out =
                    Kernels.run(
                                    scope,
                                    "norm_linear",
                                    tensor(scope, x),
                                    norm.tensor(scope),
                                    EPS,
                                    weight.tensor(scope))
                            .get(0)
                            .toFloatArray();
            compare(
                    x,
                    out,
                    0,
                    weight.rows(),
                    row -> weight.times(normed(x[row], norm), none),
                    row -> weight.magnitudes(normed(x[row], norm)));
        }
    }

    private static double[] absolute(double[] a) {
        return Arrays.stream(a).map(Math::abs).toArray();
    }

    private static double[] add(double[] a, double[] b) {
        double[] sum = a.clone();
        for (int i = 0; i < a.length; ++i) {
            sum[i] += b[i];
        }
        return sum;
    }

    private static double[] normed(double[] x, Matrix norm) {
        double squares = 0;
        for (double value : x) {
            squares += value * value;
        }
        double[] out = new double[x.length];
        for (int i = 0; i < x.length; ++i) {
            out[i] = x[i] / Math.sqrt(squares / x.length + EPS) * norm.values()[i];
        }
        return out;
    }

    private static double[] silu(double[] gate, double[] up) {
        double[] out = new double[gate.length];
        for (int i = 0; i < gate.length; ++i) {
            out[i] = gate[i] / (1 + Math.exp(-gate[i])) * up[i];
        }
        return out;
    }

    private static void compare(
            double[][] x,
            float[] actual,
            int begin,
            int stride,
            IntFunction<double[]> expected,
            IntFunction<double[]> magnitude) {
        for (int row = 0; row < x.length; ++row) {
            double[] wanted = expected.apply(row);
            double[] size = magnitude.apply(row);
            for (int i = 0; i < wanted.length; ++i) {
                double error = Math.abs(actual[row * stride + begin + i] - wanted[i]);
                // 1 covers a bias.
                double allowed = TOLERANCE * (1 + size[i]);
                String what = "row " + row + " of " + x.length + ", output " + i;
                assertTrue(error <= allowed, () -> what + ": error " + error + " of " + allowed);
            }
        }
    }

    @Test
    void bfloat16IsViewedInPlace() {
        Matrix weight = Matrix.random("BF16", 7, 12, random);
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            NDArray view = weight.tensor(scope);
            float[] before = Kernels.run(scope, "widen", view).get(0).toFloatArray();
            for (int i = 0; i < before.length; ++i) {
                assertEquals(weight.values()[i], before[i]);
            }
            weight.bytes().putShort(0, (short) 0x3f80);
            assertEquals(1f, Kernels.run(scope, "widen", view).get(0).toFloatArray()[0]);
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"x", "weight columns", "weight type", "bias", "bias type", "residual"})
    void wrongArgumentsAreRefused(String what) {
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            NDArray x = scope.zeros(new Shape(2, 8));
            NDArray weight = scope.zeros(new Shape(3, "weight columns".equals(what) ? 9 : 8));
            NDArray bias = scope.zeros(new Shape("bias".equals(what) ? 4 : 3));
            NDArray residual = scope.zeros(new Shape(2, "residual".equals(what) ? 4 : 3));
            if ("x".equals(what)) {
                x = x.toType(DataType.FLOAT64, true);
            } else if ("weight type".equals(what)) {
                weight = weight.toType(DataType.INT32, true);
            } else if ("bias type".equals(what)) {
                bias = bias.toType(DataType.FLOAT16, true);
            }
            Object[] arguments = {x, weight, bias, residual};
            EngineException e =
                    assertThrows(
                            EngineException.class,
                            () -> Kernels.run(scope, "linear_add", arguments));
            String expected =
                    "kvquant::linear_add: "
                            + switch (what) {
                                case "x" -> "x must be FLOAT32, not";
                                case "weight columns" -> "weight has 9 columns but 8 are needed";
                                case "weight type" ->
                                        "weight must be FLOAT32, FLOAT16 or BFLOAT16, not INT32";
                                case "bias" -> "a bias has 4 entries but 3 are needed";
                                case "bias type" -> "a bias must be FLOAT32, not FLOAT16";
                                default -> "residual has 4 columns but 3 are needed";
                            };
            assertTrue(
                    e.getMessage().contains(expected),
                    () -> expected + " is not in " + e.getMessage());
        }
    }

    @Test
    void noRowsGiveNoRows() {
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            NDArray weight = scope.zeros(new Shape(3, 8));
            NDArray out =
                    Kernels.run(
                                    scope,
                                    "norm_linear",
                                    scope.zeros(new Shape(0, 8)),
                                    scope.zeros(new Shape(8)),
                                    EPS,
                                    weight)
                            .get(0);
            assertArrayEquals(new long[] {0, 3}, out.getShape().getShape());
        }
    }
}
