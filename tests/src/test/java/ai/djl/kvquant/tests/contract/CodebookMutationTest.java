/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.util.Map;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;

/** Definitions of codebooks with one mistake must disagree with what is stored and read. */
class CodebookMutationTest {

    private static final int LENGTH = 129;

    private static final Map<String, UnaryOperator<Codebook>> STORED =
            Map.of(
                    "other levels", book -> book.withLevels(shifted(book), book.readLevels()),
                    "levels that codes stand for",
                            book -> book.withLevels(book.readLevels(), book.readLevels()));

    @Test
    void theDefinitionItselfPasses() {
        try (Scenario scenario = scenario()) {
            assertEquals(0, new StoredTokens(scenario).problems().size());
            assertTrue(scenario.error(new Oracle(scenario.state)) < 1);
        }
    }

    @TestFactory
    Stream<DynamicTest> otherCodebooksFail() {
        return STORED.entrySet().stream()
                .flatMap(
                        mutant ->
                                Stream.of(true, false)
                                        .map(
                                                keys ->
                                                        DynamicTest.dynamicTest(
                                                                (keys ? "keys" : "values")
                                                                        + " with "
                                                                        + mutant.getKey(),
                                                                () ->
                                                                        storedFail(
                                                                                mutant.getValue(),
                                                                                keys))));
    }

    private static void storedFail(UnaryOperator<Codebook> mutant, boolean keys) {
        try (Scenario scenario = scenario()) {
            Layer layer = scenario.layer;
            Side side = keys ? layer.keys() : layer.values();
            Side other = Side.codebook(mutant.apply(side.codebook()));
            Layer changed = keys ? layer.withKeys(other) : layer.withValues(other);
            StoredTokens stored = new StoredTokens(scenario, changed);
            assertTrue(stored.problems().size() > stored.checked() / 2);
        }
    }

    @Test
    void readingAsTheLevelsThatChooseFails() {
        try (Scenario scenario = scenario()) {
            Codebook keys = scenario.layer.keys().codebook();
            Side same = Side.codebook(keys.withLevels(keys.levels(), keys.levels()));
            Oracle oracle = new Oracle(scenario.state, scenario.layer.withKeys(same));
            assertTrue(scenario.error(oracle) > 50);
        }
    }

    @Test
    void withoutOutliersFails() {
        try (Scenario scenario = scenario()) {
            assertTrue(scenario.error(new WithoutOutliers(scenario.state)) > 50);
        }
    }

    /** Everything but the outliers. */
    private static final class WithoutOutliers extends Oracle {
        WithoutOutliers(CacheState state) {
            super(state);
        }

        @Override
        double[] stored(PageFormat format, ByteBuffer page, int slot) {
            double[] x = super.stored(format, page, slot);
            for (int i = 0; i < format.outliers(); ++i) {
                int channel = format.outlierChannel(page, slot, i);
                if (channel != Codebook.EMPTY) {
                    x[channel] = 0;
                }
            }
            return x;
        }
    }

    private static float[] shifted(Codebook codebook) {
        float[] levels = codebook.levels().clone();
        levels[1] += 0.3f * (levels[2] - levels[1]);
        return levels;
    }

    private static Scenario scenario() {
        return new Scenario(Case.sample(Method.KVQUANT2, LENGTH, Case.SinkPlace.SCATTERED, 0));
    }
}
