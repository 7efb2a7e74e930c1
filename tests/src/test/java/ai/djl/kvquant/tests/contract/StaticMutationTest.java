/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.Map;
import java.util.function.BiFunction;
import java.util.function.Function;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * Definitions of static codes and norms with one mistake must disagree with what is stored and with
 * what attention sees.
 */
class StaticMutationTest {

    private static final int LENGTH = 129;
    private static final int EIGHT_BITS = 2;

    private static final Map<String, UnaryOperator<StaticCodes>> CODES =
            Map.of(
                    "without the mean", StaticMutationTest::withoutMean,
                    "with the means of the next channels", StaticMutationTest::otherMeans,
                    "with the steps of the next places", StaticMutationTest::otherSteps);

    private static final Map<String, BiFunction<Scenario, Layer, StoredTokens>> NORMS =
            Map.of("least squares", LeastSquares::new, "root mean square", RootMeanSquare::new);

    @ParameterizedTest
    @EnumSource(Method.class)
    void theDefinitionsThemselvesPass(Method method) {
        try (Scenario scenario = scenario(method)) {
            assertEquals(0, new StoredTokens(scenario).problems().size());
            assertTrue(scenario.error(new Oracle(scenario.state)) < 1);
        }
    }

    @TestFactory
    Stream<DynamicTest> otherCodesFail() {
        return methods(Method::keysAreStatic)
                .flatMap(
                        method ->
                                CODES.entrySet().stream()
                                        .map(
                                                mutant ->
                                                        DynamicTest.dynamicTest(
                                                                method + " " + mutant.getKey(),
                                                                () ->
                                                                        codesFail(
                                                                                method,
                                                                                mutant
                                                                                        .getValue()))));
    }

    private static void codesFail(Method method, UnaryOperator<StaticCodes> mutant) {
        try (Scenario scenario = scenario(method)) {
            Side keys = scenario.layer.keys();
            Layer layer = scenario.layer.withKeys(keys.withCodes(mutant.apply(keys.codes())));
            StoredTokens stored = new StoredTokens(scenario, layer);
            assertTrue(stored.problems().size() > stored.checked() / 2);
            assertTrue(scenario.error(new Oracle(scenario.state, layer)) > 50);
        }
    }

    @Test
    void aMeanThatIsNotTurnedFails() {
        try (Scenario scenario = scenario(Method.INT_NORM8)) {
            assertTrue(scenario.error(new StillMean(scenario.state)) > 50);
        }
    }

    /** Operators with a wrong wave table against the right definition. */
    @Test
    void wavesOfOtherFrequenciesFail() {
        Case point = point(Method.INT_NORM8);
        Layer layer = point.layer();
        Rope rope = Scenario.rope(point.headDim(), 0);
        double[] frequencies = rope.inverseFrequencies.clone();
        frequencies[frequencies.length - 8] *= 1.1;
        StaticCodes codes = layer.keys().codes().withWaves(Waves.table(frequencies, 16));
        Layer wrong = layer.withKeys(layer.keys().withCodes(codes));
        try (Scenario scenario = new Scenario(point, wrong, rope, Integer.MAX_VALUE)) {
            assertTrue(scenario.error(new Oracle(scenario.state)) > 50);
        }
    }

    @TestFactory
    Stream<DynamicTest> otherNormsFail() {
        return methods(method -> layer(method).values().hasNorms())
                .flatMap(
                        method ->
                                NORMS.entrySet().stream()
                                        .map(
                                                mutant ->
                                                        DynamicTest.dynamicTest(
                                                                method + " with " + mutant.getKey(),
                                                                () ->
                                                                        normsFail(
                                                                                method,
                                                                                mutant
                                                                                        .getValue()))));
    }

    private static void normsFail(Method method, BiFunction<Scenario, Layer, StoredTokens> mutant) {
        try (Scenario scenario = scenario(method)) {
            StoredTokens stored = mutant.apply(scenario, scenario.layer);
            int problems = stored.problems().size();
            assertTrue(problems > stored.checked() / 10, problems + " of " + stored.checked());
        }
    }

    @TestFactory
    Stream<DynamicTest> otherLevelsFail() {
        return methods(method -> layer(method).values().hasNorms())
                .map(
                        method ->
                                DynamicTest.dynamicTest(
                                        method + " with other levels", () -> levelsFail(method)));
    }

    private static void levelsFail(Method method) {
        try (Scenario scenario = scenario(method)) {
            float[] levels = scenario.layer.values().levels().clone();
            levels[levels.length / 2] +=
                    0.3f * (levels[levels.length / 2 + 1] - levels[levels.length / 2]);
            Layer layer = scenario.layer.withValues(scenario.layer.values().withLevels(levels));
            StoredTokens stored = new StoredTokens(scenario, layer);
            assertTrue(stored.problems().size() > stored.checked() / 10);
            assertTrue(scenario.error(new Oracle(scenario.state, layer)) > 10);
        }
    }

    private static Stream<Method> methods(Function<Method, Boolean> which) {
        return Arrays.stream(Method.values()).filter(which::apply);
    }

    private static Layer layer(Method method) {
        return point(method).layer();
    }

    /** 8 bits: the smallest effect of a mistake. */
    private static Case point(Method method) {
        return Case.sample(method, LENGTH, Case.SinkPlace.SCATTERED, 0).withCodes(EIGHT_BITS, 2);
    }

    private static Scenario scenario(Method method) {
        return new Scenario(point(method));
    }

    private static StaticCodes withoutMean(StaticCodes codes) {
        return new StaticCodes(
                new float[codes.mean().length],
                codes.steps(),
                codes.widths(),
                codes.basis(),
                codes.noise(),
                codes.waves());
    }

    private static StaticCodes otherMeans(StaticCodes codes) {
        return new StaticCodes(
                rolled(codes.mean(), 1),
                codes.steps(),
                codes.widths(),
                codes.basis(),
                codes.noise(),
                codes.waves());
    }

    private static StaticCodes otherSteps(StaticCodes codes) {
        return new StaticCodes(
                codes.mean(),
                rolled(codes.steps(), 2),
                codes.widths(),
                codes.basis(),
                codes.noise(),
                codes.waves());
    }

    private static float[] rolled(float[] x, int by) {
        float[] out = new float[x.length];
        for (int i = 0; i < x.length; ++i) {
            out[i] = x[(i + by) % x.length];
        }
        return out;
    }

    private static final class StillMean extends Oracle {
        StillMean(CacheState state) {
            super(state);
        }

        @Override
        void turnMean(double[] mean, int token) {
            // Stays where it is.
        }
    }

    /** The norm nearest to the vector: too short where codes are coarse. */
    private static final class LeastSquares extends StoredTokens {
        LeastSquares(Scenario scenario, Layer layer) {
            super(scenario, layer);
        }

        @Override
        NormQuantizer normQuantizer(PageFormat format) {
            return new NormQuantizer(format) {
                @Override
                double norm(double square, double product, double levelSquare) {
                    return product / levelSquare;
                }
            };
        }
    }

    private static final class RootMeanSquare extends StoredTokens {
        RootMeanSquare(Scenario scenario, Layer layer) {
            super(scenario, layer);
        }

        @Override
        NormQuantizer normQuantizer(PageFormat format) {
            return new NormQuantizer(format) {
                @Override
                double norm(double square, double product, double levelSquare) {
                    return Math.sqrt(square / format.layer.headDim());
                }
            };
        }
    }
}
