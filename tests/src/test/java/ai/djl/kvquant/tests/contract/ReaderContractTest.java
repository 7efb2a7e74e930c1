/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.torch.Operators.Variant;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** What prefill reads: dequantized tokens, and new ones by head, turned to their positions. */
class ReaderContractTest {

    private static final double ERROR = 2e-6;

    @AfterEach
    void restoreVariant() {
        Kernels.OPERATORS.useVariant(Kernels.OPERATORS.bestVariant());
    }

    @ParameterizedTest
    @EnumSource(Method.class)
    void dequantizeReadsWhatAttentionSees(Method method) {
        Cases.pairs(method)
                .filter(point -> point.length() <= 1000)
                .forEach(
                        point -> {
                            try (Scenario scenario = new Scenario(point)) {
                                Oracle oracle = new Oracle(scenario.state);
                                check(scenario, oracle, 0, 0, point.length());
                                int last = point.batch() - 1;
                                int length = scenario.state.lengths[last];
                                check(scenario, oracle, last, length / 3, length - length / 5);
                            }
                        });
    }

    private static void check(Scenario scenario, Oracle oracle, int b, int begin, int end) {
        List<float[][]> results = new ArrayList<>();
        for (Variant variant : Kernels.variants()) {
            Kernels.OPERATORS.useVariant(variant);
            float[][] actual = scenario.state.dequantize(b, begin, end);
            assertEquals((end - begin) * scenario.layer.channels(), actual[0].length);
            results.add(actual);
        }
        int length = scenario.state.lengths[b];
        Map<Integer, Integer> sinks = oracle.sinks(b, length);
        for (int t = begin; t < end; ++t) {
            Oracle.Token token = oracle.read(b, t, length, sinks);
            for (int i = 0; i < results.size(); ++i) {
                String what = Kernels.variants().get(i) + " token " + t;
                float[][] actual = results.get(i);
                compare(scenario, token.k(), actual[0], t - begin, end - begin, what + " key");
                compare(scenario, token.v(), actual[1], t - begin, end - begin, what + " value");
            }
        }
    }

    /** One token of [kvHeads, tokens, headDim] against [channels]. */
    private static void compare(
            Scenario scenario, double[] expected, float[] actual, int row, int rows, String what) {
        int headDim = scenario.layer.headDim();
        double norm = 0;
        double difference = 0;
        for (int c = 0; c < expected.length; ++c) {
            float x = actual[(c / headDim * rows + row) * headDim + c % headDim];
            norm += expected[c] * expected[c];
            difference += (x - expected[c]) * (x - expected[c]);
        }
        double error = difference == 0 ? 0 : Math.sqrt(difference / norm);
        assertTrue(error <= ERROR, () -> what + " of " + scenario.point + ": error " + error);
    }

    @Test
    void newTokensAreTurnedToTheirPositions() {
        Case point =
                Case.sample(Method.ROTATEKV4, 70, Case.SinkPlace.NONE, 0)
                        .with(3, Case.Pages.SHUFFLED);
        try (Scenario scenario = new Scenario(point);
                NDManager scope = Kernels.MANAGER.newSubManager()) {
            Layer layer = scenario.layer;
            int[] starts = {0, 5, 5, 24};
            float[] rows = scenario.inputs.rows(9, 0, 24);
            Object[] arguments =
                    scenario.state.arguments(
                            scope,
                            scope.create(rows, new Shape(24, layer.columns())),
                            scope.create(starts));
            NDList out = Kernels.run(scope, "rope_heads", arguments);
            for (int b = 0; b < 3; ++b) {
                for (int t = starts[b]; t < starts[b + 1]; ++t) {
                    int position = scenario.state.lengths[b] + t - starts[b];
                    int column = t * layer.columns();
                    int kv = layer.channels();
                    int q = layer.heads() * layer.headDim();
                    compare(
                            scenario,
                            turned(scenario, rows, column, q, position),
                            out.get(0).toFloatArray(),
                            t,
                            24,
                            "q");
                    compare(
                            scenario,
                            turned(scenario, rows, column + q, kv, position),
                            out.get(1).toFloatArray(),
                            t,
                            24,
                            "k");
                    compare(
                            scenario,
                            turned(scenario, rows, column + q + kv, kv, -1),
                            out.get(2).toFloatArray(),
                            t,
                            24,
                            "v");
                }
            }
        }
    }

    private static double[] turned(
            Scenario scenario, float[] rows, int begin, int n, int position) {
        double[] x = new double[n];
        for (int i = 0; i < n; ++i) {
            x[i] = rows[begin + i];
        }
        if (position >= 0) {
            scenario.state.rope.turn(x, position);
        }
        return x;
    }
}
