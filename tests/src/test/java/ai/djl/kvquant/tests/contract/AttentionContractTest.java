/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import ai.djl.kvquant.torch.Operators.Variant;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * Attention of every method on every variant, over the cache as it was packed, against the
 * definition.
 */
class AttentionContractTest {

    private static final int SHOWN = 5;

    @AfterEach
    void restoreVariant() {
        Kernels.OPERATORS.useVariant(Kernels.OPERATORS.bestVariant());
    }

    @ParameterizedTest
    @EnumSource(Variant.class)
    void variantIsTested(Variant variant) {
        assumeTrue(
                Kernels.variants().contains(variant),
                "this processor has no " + variant + "; the other variants were tested");
        Kernels.OPERATORS.useVariant(variant);
        assertEquals(variant, Kernels.OPERATORS.currentVariant());
    }

    @ParameterizedTest
    @EnumSource(Method.class)
    void attentionFollowsTheDefinition(Method method) {
        List<String> failures = new ArrayList<>();
        List<Case> cases = Cases.of(method).collect(Collectors.toList());
        Worst worst = new Worst();
        for (Case point : cases) {
            try (Scenario scenario = new Scenario(point)) {
                check(scenario, worst, failures);
            }
        }
        System.out.printf("%s: %d cases, %s%n", method, cases.size(), worst);
        assertTrue(
                failures.isEmpty(),
                () ->
                        failures.size()
                                + " failures, among them\n"
                                + failures.stream().limit(SHOWN).collect(Collectors.joining("\n")));
    }

    /** The largest errors as shares of what is allowed, for the log. */
    private static final class Worst {
        private double relative;
        private double weighted;

        @Override
        public String toString() {
            return String.format("errors %.2f and %.2f of the tolerance", relative, weighted);
        }
    }

    private static void check(Scenario scenario, Worst worst, List<String> failures) {
        Oracle oracle = new Oracle(scenario.state);
        for (String problem : Storage.problems(scenario)) {
            failures.add(scenario.point + ": " + problem);
        }
        List<float[]> outputs = new ArrayList<>();
        for (Variant variant : Kernels.variants()) {
            Kernels.OPERATORS.useVariant(variant);
            outputs.add(scenario.state.attend(scenario.decoded));
        }
        for (int b = 0; b < scenario.point.batch(); ++b) {
            int length = scenario.state.lengths[b] + 1;
            checkSinks(scenario, b, length, failures);
            int row = b * scenario.layer.columns();
            Oracle.Attention expected = oracle.attend(b, length, scenario.decoded, row);
            for (int i = 0; i < outputs.size(); ++i) {
                String what = Kernels.variants().get(i) + " row " + b + " of " + scenario.point;
                compare(scenario.layer, expected, outputs.get(i), b, what, worst, failures);
            }
        }
    }

    private static void compare(
            Layer layer,
            Oracle.Attention expected,
            float[] actual,
            int b,
            String what,
            Worst worst,
            List<String> failures) {
        int n = layer.headDim();
        double tolerance = Tolerance.of(expected);
        for (int h = 0; h < layer.heads(); ++h) {
            int offset = (b * layer.heads() + h) * n;
            double relative = Tolerance.relativeError(expected.output(), actual, h * n, offset, n);
            double weighted =
                    Tolerance.weightedError(
                            expected.output(), expected.magnitude(), actual, h * n, offset, n);
            double allowed = Tolerance.ofHead(expected, h * n, n);
            worst.relative = Math.max(worst.relative, relative / allowed);
            worst.weighted = Math.max(worst.weighted, weighted / tolerance);
            if (!(relative <= allowed) || !(weighted <= tolerance)) {
                failures.add(
                        String.format(
                                "%s head %d: errors %.2e and %.2e, allowed %.2e and %.2e",
                                what, h, relative, weighted, allowed, tolerance));
            }
        }
    }

    private static void checkSinks(Scenario scenario, int b, int length, List<String> failures) {
        Set<Integer> expected = scenario.point.expectedSinks(b, length);
        Set<Integer> actual = new TreeSet<>(ExactFormat.sinks(scenario.state, b, length).keySet());
        if (!expected.equals(actual)) {
            failures.add(scenario.point + " row " + b + ": sinks " + actual + ", not " + expected);
        }
    }
}
