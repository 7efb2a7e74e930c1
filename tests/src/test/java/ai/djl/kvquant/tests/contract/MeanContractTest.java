/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.torch.Operators.Variant;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * The mean of keys that are stored after RoPE, which readers add as waves: near and far from
 * position 0, with the frequencies of real models.
 */
class MeanContractTest {

    private static final int POSITIONS = 640;
    private static final int LENGTH = 333;

    /** All widths 0: keys are the turned mean and nothing else. */
    private static final int NO_CODES = 5;

    private static final int EIGHT_BITS = 2;

    @AfterEach
    void restoreVariant() {
        Kernels.OPERATORS.useVariant(Kernels.OPERATORS.bestVariant());
    }

    @ParameterizedTest
    @CsvSource({
        "10000,64,1,1,0",
        "10000,64,3,3,4000",
        "10000,64,8,4,100000",
        "10000,128,2,5,100000",
        "100000,64,3,3,2000",
        "500000,128,8,4,130000",
        "500000,64,5,7,1000000",
        "1000000,128,2,7,32000"
    })
    void meansFollowTheDefinition(
            double base, int headDim, int kvHeads, int perHead, int firstPosition) {
        Rope rope = new Rope(headDim, POSITIONS, firstPosition, base);
        List<String> failures = new ArrayList<>();
        double worst = 0;
        for (int terms : new int[] {0, 1, 5, 8, 12, 16}) {
            for (int widths : new int[] {NO_CODES, EIGHT_BITS}) {
                Case point =
                        Case.sample(Method.INT_FP16, LENGTH, Case.SinkPlace.NONE, 17)
                                .withHeads(perHead, kvHeads, headDim)
                                .withCodes(widths, 0);
                float[] waves = terms == 0 ? null : Waves.table(rope.inverseFrequencies, terms);
                Layer layer = point.layer();
                Side keys = layer.keys().withCodes(layer.keys().codes().withWaves(waves));
                layer = layer.withKeys(keys);
                try (Scenario scenario = new Scenario(point, layer, rope, POSITIONS)) {
                    String what = terms + " terms of " + point;
                    worst = Math.max(worst, check(scenario, what, failures));
                }
            }
        }
        System.out.printf("means from %d: %.2f of the tolerance%n", firstPosition, worst);
        assertTrue(failures.isEmpty(), () -> String.join("\n", failures));
    }

    /** The largest error of a head as a share of the tolerance. */
    private static double check(Scenario scenario, String what, List<String> failures) {
        Layer layer = scenario.layer;
        int n = layer.headDim();
        Oracle.Attention expected =
                new Oracle(scenario.state).attend(0, LENGTH + 1, scenario.decoded, 0);
        double worst = 0;
        for (Variant variant : Kernels.variants()) {
            Kernels.OPERATORS.useVariant(variant);
            float[] actual = scenario.state.attend(scenario.decoded);
            for (int h = 0; h < layer.heads(); ++h) {
                double error =
                        Tolerance.relativeError(expected.output(), actual, h * n, h * n, n)
                                / Tolerance.ofHead(expected, h * n, n);
                worst = Math.max(worst, error);
                if (!(error <= 1)) {
                    failures.add(variant + " head " + h + ": " + error + " with " + what);
                }
            }
        }
        return worst;
    }
}
