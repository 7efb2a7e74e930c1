/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.torch.Operators.Variant;
import java.nio.ByteBuffer;
import java.util.List;
import java.util.TreeSet;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * What must not change the result: how a prompt is cut, where pages lie, threads, and where
 * positions begin.
 */
class InvariantTest {

    private static final int THREADS = Kernels.OPERATORS.threads();

    @AfterEach
    void restore() {
        Kernels.OPERATORS.useVariant(Kernels.OPERATORS.bestVariant());
        Kernels.OPERATORS.setThreads(THREADS);
    }

    @ParameterizedTest
    @EnumSource(Method.class)
    void chunksEqualTheWholePrompt(Method method) {
        for (Case.SinkPlace sinks : Case.SinkPlace.values()) {
            for (int window : new int[] {0, 1, 33}) {
                Case point = Case.sample(method, 150, sinks, window).with(3, Case.Pages.SHUFFLED);
                try (Scenario whole = new Scenario(point)) {
                    for (int chunk : new int[] {1, 7, 64}) {
                        compareWithChunks(point, whole, chunk);
                    }
                }
            }
        }
    }

    private static void compareWithChunks(Case point, Scenario whole, int chunk) {
        String what = "chunks of " + chunk + " of " + point;
        try (Scenario cut = new Scenario(point, whole.state.rope, chunk)) {
            assertEquals(-1, whole.state.pages.mismatch(cut.state.pages), what);
            // Exact copies are those of the projections, sinks those of the whole prompt.
            assertEquals(List.of(), Storage.problems(cut), what);
            for (int b = 0; b < point.batch(); ++b) {
                int length = cut.state.lengths[b] + 1;
                assertEquals(
                        point.expectedSinks(b, length),
                        new TreeSet<>(ExactFormat.sinks(cut.state, b, length).keySet()),
                        what);
            }
            // Sinks may lie in other slots, which are added in another order.
            assertClose(
                    whole.state.attend(whole.decoded), cut.state.attend(cut.decoded), 2e-6, what);
        }
    }

    @ParameterizedTest
    @EnumSource(Method.class)
    void variantsStoreTheSame(Method method) {
        for (Inputs.Kind kind : Inputs.Kind.values()) {
            // In runs of tokens and one by one; on to static codes of all widths.
            int chunk = kind.ordinal() % 2 == 0 ? Integer.MAX_VALUE : 7;
            int widths = kind.ordinal() % StaticCodes.WIDTHS.length;
            Case point =
                    Case.sample(method, 150, Case.SinkPlace.SCATTERED, 17)
                            .with(2, Case.Pages.SHUFFLED)
                            .withKind(kind)
                            .withCodes(widths, 1);
            Rope rope = Scenario.rope(point.headDim(), 0);
            Kernels.OPERATORS.useVariant(Variant.PORTABLE);
            try (Scenario portable = new Scenario(point, rope, chunk)) {
                for (Variant variant : Kernels.variants()) {
                    Kernels.OPERATORS.useVariant(variant);
                    try (Scenario other = new Scenario(point, rope, chunk)) {
                        String what = variant + " of " + point;
                        assertEquals(-1, portable.state.pages.mismatch(other.state.pages), what);
                        assertEquals(-1, portable.state.exact.mismatch(other.state.exact), what);
                    }
                }
            }
        }
    }

    @ParameterizedTest
    @EnumSource(
            value = Method.class,
            names = {"INT_NORM.", "LATENT_NORM.", ".*LAYER_LATENT.*", ".*KVQUANT.*"},
            mode = EnumSource.Mode.MATCH_ANY)
    void variantsStoreInfinitiesAlike(Method method) {
        Case point = Case.sample(method, 0, Case.SinkPlace.NONE, 0);
        Kernels.OPERATORS.useVariant(Variant.PORTABLE);
        ByteBuffer expected = infinities(point.layer());
        for (Variant variant : Kernels.variants()) {
            Kernels.OPERATORS.useVariant(variant);
            assertEquals(-1, expected.mismatch(infinities(point.layer())), variant.name());
        }
    }

    /** Pages of tokens some of whose entries are beyond halves, or no numbers. */
    private static ByteBuffer infinities(Layer layer) {
        float[] special = {Float.NEGATIVE_INFINITY, 1e6f, -1e6f, Float.NaN, -0f, 1e-40f};
        Rope rope = Scenario.rope(layer.headDim(), 0);
        byte poison = CacheState.POISONS[0];
        try (CacheState state = new CacheState(layer, rope, new int[] {64}, 0, poison, null)) {
            float[] rows = new Inputs(layer, Inputs.Kind.NORMAL, 3).rows(0, 0, 64);
            int first = layer.heads() * layer.headDim();
            for (int token = 0; token < 64; ++token) {
                int begin = token * layer.columns() + first;
                rows[begin + token % layer.channels()] = special[token % special.length];
                // The first channel of a head: its rotation has one sign.
                rows[begin + layer.channels()] = special[token % special.length];
            }
            state.append(rows, new int[] {64}, null);
            return state.pages;
        }
    }

    @ParameterizedTest
    @EnumSource(Method.class)
    void placesOfPagesChangeNothing(Method method) {
        Case ascending =
                Case.sample(method, 1000, Case.SinkPlace.SCATTERED, 17)
                        .with(3, Case.Pages.ASCENDING);
        Case shuffled = ascending.with(3, Case.Pages.SHUFFLED);
        try (Scenario a = new Scenario(ascending);
                Scenario b = new Scenario(shuffled)) {
            for (Variant variant : Kernels.variants()) {
                Kernels.OPERATORS.useVariant(variant);
                assertArrayEquals(
                        a.state.attend(a.decoded), b.state.attend(b.decoded), variant.name());
            }
        }
    }

    @ParameterizedTest
    @EnumSource(Method.class)
    void threadsAndRepetitionsChangeNothing(Method method) {
        Case point =
                Case.sample(method, 2100, Case.SinkPlace.START, 128).with(3, Case.Pages.SHUFFLED);
        Kernels.OPERATORS.setThreads(1);
        try (Scenario one = new Scenario(point)) {
            for (Variant variant : Kernels.variants()) {
                Kernels.OPERATORS.useVariant(variant);
                Kernels.OPERATORS.setThreads(1);
                float[] expected = one.state.attend(one.decoded);
                Kernels.OPERATORS.setThreads(2);
                for (int i = 0; i < 10; ++i) {
                    assertArrayEquals(expected, one.state.attend(one.decoded), variant.name());
                }
            }
            Kernels.OPERATORS.setThreads(3);
            try (Scenario three = new Scenario(point)) {
                assertEquals(-1, one.state.pages.mismatch(three.state.pages));
                assertEquals(-1, one.state.exact.mismatch(three.state.exact));
            }
        }
    }

    /**
     * All angles of the table's bases turned by those of a far position: the same differences. Only
     * for keys that are stored before RoPE, and without sinks, whose angles are taken as they are.
     */
    @ParameterizedTest
    @EnumSource(
            value = Method.class,
            names = {"ROTATEKV.*", "EIGHT_BITS", "BEFORE_ROPE.*", ".*LATENT.*", "KVQUANT.*"},
            mode = EnumSource.Mode.MATCH_ANY)
    void onlyDifferencesOfPositionsMatter(Method method) {
        Case point = Case.sample(method, 300, Case.SinkPlace.NONE, 17);
        Rope far = Scenario.rope(64, 100_000);
        try (Scenario origin = new Scenario(point);
                Scenario shifted = new Scenario(point, far, Integer.MAX_VALUE)) {
            assertEquals(-1, origin.state.pages.mismatch(shifted.state.pages));
            for (Variant variant : Kernels.variants()) {
                Kernels.OPERATORS.useVariant(variant);
                float[] expected = origin.state.attend(origin.decoded);
                float[] actual = shifted.state.attend(shifted.decoded);
                assertClose(expected, actual, 2e-5, variant.name());
            }
        }
    }

    private static void assertClose(
            float[] expected, float[] actual, double tolerance, String what) {
        assertEquals(expected.length, actual.length, what);
        double difference = 0;
        double norm = 0;
        for (int i = 0; i < expected.length; ++i) {
            difference += Math.pow(actual[i] - expected[i], 2);
            norm += Math.pow(expected[i], 2);
        }
        double error = Math.sqrt(difference / norm);
        assertTrue(error <= tolerance, () -> what + ": relative error " + error);
    }
}
