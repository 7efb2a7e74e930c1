/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** What is stored in pages, against the definition of each format. */
class QuantizerContractTest {

    /** Tokens at both ends of the stored run that are checked. */
    private static final int ENDS = 66;

    /** RoPE from two fp32 table entries. */
    private static final double ROPE_ERROR = 1e-6;

    @ParameterizedTest
    @EnumSource(Method.class)
    void pagesFollowTheDefinition(Method method) {
        List<String> failures = new ArrayList<>();
        int[] checked = new int[1];
        Cases.pairs(method)
                .forEach(
                        point -> {
                            try (Scenario scenario = new Scenario(point)) {
                                checked[0] += check(scenario, failures);
                            }
                        });
        assertTrue(
                failures.isEmpty(), () -> failures.size() + " failures, first " + failures.get(0));
        assertTrue(checked[0] > 100, "too few tokens are stored in pages: " + checked[0]);
    }

    private static int check(Scenario scenario, List<String> failures) {
        CacheState state = scenario.state;
        int checked = 0;
        for (int b = 0; b < state.batch; ++b) {
            int stored = state.quantized(b, state.lengths[b] + 1);
            for (int t = 0; t < stored; ++t) {
                if (t < ENDS || t >= stored - ENDS) {
                    checkToken(scenario, b, t, failures);
                    ++checked;
                }
            }
        }
        return checked;
    }

    private static void checkToken(Scenario scenario, int b, int token, List<String> failures) {
        Layer layer = scenario.layer;
        float[] row = scenario.rows(b, token, token + 1);
        int begin = layer.heads() * layer.headDim();
        double[] k = asStored(layer, layer.keys(), row, begin);
        double[] v = asStored(layer, layer.values(), row, begin + layer.channels());
        if (!layer.preRope()) {
            scenario.state.rope.turn(k, token);
        }
        ByteBuffer page = scenario.state.page(b, token);
        String key = problem(PageFormat.keys(layer), layer.keys(), k, page, token % 64);
        String value = problem(PageFormat.values(layer), layer.values(), v, page, token % 64);
        if (key != null || value != null) {
            String what = key != null ? "key: " + key : "value: " + value;
            failures.add(scenario.point + " row " + b + " token " + token + " " + what);
        }
    }

    /** One side of a row; as halves if codes are made of it or the window may have held it. */
    private static double[] asStored(Layer layer, Side side, float[] row, int begin) {
        double[] x = new double[layer.channels()];
        for (int i = 0; i < x.length; ++i) {
            x[i] = row[begin + i];
        }
        return side.isAffine() || layer.window() > 0 ? Half.round(x) : x;
    }

    private static String problem(
            PageFormat format, Side side, double[] x, ByteBuffer page, int slot) {
        if (side.isAffine()) {
            double[] rotated = Rotation.of(format.layer.headDim(), side.rotationHeads()).apply(x);
            return new Quantizer(format).problem(rotated, page, slot);
        }
        double[] actual = format.read(page, slot);
        double largest = Arrays.stream(x).map(Math::abs).max().orElse(0);
        for (int c = 0; c < x.length; ++c) {
            double allowed = side == format.layer.keys() ? ROPE_ERROR * largest : 0;
            boolean same =
                    side.format() == 1
                            ? actual[c] >= Half.round(x[c] - allowed)
                                    && actual[c] <= Half.round(x[c] + allowed)
                            : Math.abs(actual[c] - x[c]) <= allowed;
            if (!same) {
                return actual[c] + " instead of " + x[c];
            }
        }
        return null;
    }

    @ParameterizedTest
    @EnumSource(Method.class)
    void pageSizesAreThoseOfTheLayout(Method method) {
        Layer layer = Case.sample(method, 1, Case.SinkPlace.START, 1).layer();
        ByteBuffer params = layer.pack();
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            NDArray tensor = scope.create(params, new Shape(params.remaining()), DataType.UINT8);
            long[] sizes = Kernels.OPERATORS.layout(tensor);
            assertEquals(PageFormat.pageBytes(layer), sizes[0]);
            assertEquals(ExactFormat.bytes(layer), sizes[1]);
        }
    }
}
