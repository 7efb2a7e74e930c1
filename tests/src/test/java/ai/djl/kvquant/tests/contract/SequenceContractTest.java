/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.CacheFullException;
import ai.djl.kvquant.cache.CacheSequence;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Forks, truncations and reuse of prefixes: each must read bit for bit what a sequence of its own
 * would read.
 */
class SequenceContractTest {

    private static final int PROMPT = 150;
    private static final int ROLLBACK = 16;

    /** All sinks with all windows in one method, and each once in the others. */
    static Stream<Arguments> caches() {
        List<Map<String, String>> caches = new ArrayList<>();
        for (String sinks : List.of("massive", "4", "0")) {
            for (String window : List.of("0", "1", "33", "128")) {
                caches.add(options("rotatekv4", sinks, window));
            }
        }
        for (String dtype : List.of("rotatekv3", "rotatekv2/fp16", "rotatekv4/auto")) {
            caches.add(options(dtype, "massive", "0"));
            caches.add(options(dtype, "4", "128"));
            caches.add(options(dtype, "0", "33"));
        }
        return caches.stream().map(Arguments::of);
    }

    static Stream<Arguments> allCaches() {
        Stream<Arguments> exact =
                Stream.of("auto", "fp16", "auto/rotatekv4", "fp16/int2")
                        .map(dtype -> Arguments.of(options(dtype, null, null)));
        Stream<Arguments> codebooks =
                Stream.of(
                                options("kvquant2", "1", "0"),
                                options("kvquant2", "4", "128"),
                                options("kvquant2/rotatekv4", "0", "33"))
                        .map(Arguments::of);
        return Stream.of(exact, caches(), calibratedCaches(), codebooks).flatMap(stream -> stream);
    }

    /** Caches with static codes of keys. */
    static Stream<Arguments> calibratedCaches() {
        Map<String, String> layerWide = options("latent2", "4", "128");
        layerWide.put("kv_basis", "layer");
        Map<String, String> sparse = options("svdq2.25", "4", "0");
        sparse.put("kv_sparse_tokens", "64");
        Map<String, String> sparseWindow = options("int2/fp16", "4", "33");
        sparseWindow.put("kv_sparse_tokens", "64");
        return Stream.of(
                        sparse,
                        sparseWindow,
                        options("int2", "4", "128"),
                        options("int2", "0", "0"),
                        options("int8/rotatekv4", "17", "33"),
                        options("latent2/int4", "20", "1"),
                        options("latent3/auto", "0", "33"),
                        layerWide)
                .map(Arguments::of);
    }

    private static Map<String, String> options(String dtype, String sinks, String window) {
        Map<String, String> options = new HashMap<>();
        options.put("kv_cache_dtype", dtype);
        options.put("kv_cache_tokens", "4000");
        if (sinks != null) {
            options.put("kv_sink_tokens", sinks);
            options.put("kv_recent_tokens", window);
            options.put("kv_rollback_tokens", Integer.toString(ROLLBACK));
        }
        return options;
    }

    /** What a new sequence reads that gets the parts as prompt and decoded tokens. */
    private static float[] fresh(Sequences on, int[] prompt, int[]... decoded) {
        try (CacheSequence sequence = on.cache.newSequence()) {
            on.prefill(sequence, prompt);
            float[] last = null;
            for (int[] part : decoded) {
                last = on.decodeAll(sequence, part);
            }
            return last;
        }
    }

    @ParameterizedTest
    @MethodSource("allCaches")
    void forksDivergeWithoutTouchingEachOther(Map<String, String> options) {
        int[] prompt = Sequences.tokens(1, 0, PROMPT);
        int[] first = Sequences.tokens(2, 0, 70);
        int[] second = Sequences.tokens(3, 0, 70);
        try (Sequences on = new Sequences(options);
                CacheSequence parent = on.cache.newSequence()) {
            on.prefill(parent, prompt);
            try (CacheSequence child = parent.fork()) {
                float[][] out = null;
                for (int i = 0; i < first.length; ++i) {
                    out = on.decode(List.of(parent, child), first[i], second[i]);
                }
                assertArrayEquals(fresh(on, prompt, first), out[0]);
                assertArrayEquals(fresh(on, prompt, second), out[1]);
            }
            int[] more = Sequences.tokens(4, 0, 20);
            assertArrayEquals(fresh(on, prompt, first, more), on.decodeAll(parent, more));
        }
    }

    @ParameterizedTest
    @MethodSource("allCaches")
    void rollbacksWithinTheSlackLeaveNoTrace(Map<String, String> options) {
        int[] prompt = Sequences.tokens(1, 0, PROMPT);
        int[] draft = Sequences.tokens(2, 0, 60);
        int[] other = Sequences.tokens(3, 0, 40);
        try (Sequences on = new Sequences(options);
                CacheSequence parent = on.cache.newSequence()) {
            on.prefill(parent, prompt);
            on.decodeAll(parent, draft);
            for (int drop : new int[] {1, 7, ROLLBACK}) {
                int[] kept = Arrays.copyOf(draft, draft.length - drop);
                try (CacheSequence child = parent.fork()) {
                    child.truncate(PROMPT + kept.length);
                    assertArrayEquals(fresh(on, prompt, kept, other), on.decodeAll(child, other));
                }
            }
            assertArrayEquals(fresh(on, prompt, draft, other), on.decodeAll(parent, other));
        }
    }

    /** What the window needs then has never been in it: prefill keeps the slack, too. */
    @ParameterizedTest
    @MethodSource("allCaches")
    void rollbacksOfAPromptLeaveNoTrace(Map<String, String> options) {
        int[] prompt = Sequences.tokens(1, 0, 200);
        int[] other = Sequences.tokens(3, 0, 40);
        try (Sequences on = new Sequences(options)) {
            for (int drop : new int[] {1, 9, ROLLBACK}) {
                int[] kept = Arrays.copyOf(prompt, prompt.length - drop);
                try (CacheSequence sequence = on.cache.newSequence()) {
                    on.prefill(sequence, prompt);
                    sequence.truncate(kept.length);
                    assertArrayEquals(fresh(on, kept, other), on.decodeAll(sequence, other));
                }
            }
        }
    }

    /**
     * After a long rollback the window is filled again by what follows; later short ones are exact
     * as ever.
     */
    @ParameterizedTest
    @MethodSource("allCaches")
    void shortRollbacksAfterALongOneLeaveNoTrace(Map<String, String> options) {
        int[] prompt = Sequences.tokens(1, 0, PROMPT);
        int[] dropped = Sequences.tokens(2, 0, 400);
        int[] draft = Sequences.tokens(3, 0, 190);
        int[] other = Sequences.tokens(4, 0, 3);
        try (Sequences on = new Sequences(options);
                CacheSequence sequence = on.cache.newSequence()) {
            on.prefill(sequence, prompt);
            on.decodeAll(sequence, dropped);
            sequence.truncate(PROMPT);
            on.decodeAll(sequence, draft);
            int[] kept = Arrays.copyOf(draft, draft.length - 10);
            sequence.truncate(PROMPT + kept.length);
            assertArrayEquals(fresh(on, prompt, kept, other), on.decodeAll(sequence, other));
        }
    }

    @ParameterizedTest
    @MethodSource("allCaches")
    void prefixesAreReusedExactly(Map<String, String> options) {
        int[] system = Sequences.tokens(1, 0, PROMPT);
        int[] answer = Sequences.tokens(2, 0, 200);
        int[] question = Sequences.tokens(3, 0, 50);
        try (Sequences on = new Sequences(options)) {
            CacheSequence first = on.cache.newSequence();
            on.prefill(first, system);
            on.decodeAll(first, answer);
            on.cache.retire(first);
            int[] prompt = Arrays.copyOf(system, system.length + question.length);
            System.arraycopy(question, 0, prompt, system.length, question.length);
            for (int turn = 0; turn < 2; ++turn) {
                CacheSequence next = on.cache.sequenceFor(prompt);
                assertTrue(next.length() <= prompt.length - 1 && next.length() >= 20);
                on.prefill(next, Arrays.copyOfRange(prompt, next.length(), prompt.length));
                assertArrayEquals(prompt, next.tokens());
                int[] decoded = Sequences.tokens(5, 0, 5);
                assertArrayEquals(fresh(on, prompt, decoded), on.decodeAll(next, decoded));
                on.cache.retire(next);
            }
        }
    }

    @ParameterizedTest
    @MethodSource("allCaches")
    void aFullPoolLosesNothing(Map<String, String> options) {
        Map<String, String> small = new HashMap<>(options);
        small.put("kv_cache_tokens", "512");
        small.put("max_batch_size", "1");
        int[] prompt = Sequences.tokens(1, 0, 300);
        int[] more = Sequences.tokens(2, 0, 20);
        try (Sequences on = new Sequences(small)) {
            float[] expected = fresh(on, prompt, more);
            CacheSequence sequence = on.cache.newSequence();
            on.prefill(sequence, prompt);
            CacheSequence greedy = on.cache.newSequence();
            CacheFullException e =
                    assertThrows(
                            CacheFullException.class,
                            () -> on.prefill(greedy, Sequences.tokens(3, 0, 800)));
            assertTrue(
                    e.getMessage().startsWith("The KV cache is full: all 9 pages of 64 tokens"),
                    e::getMessage);
            assertEquals(0, greedy.length());
            assertArrayEquals(expected, on.decodeAll(sequence, more));
            greedy.close();
            sequence.close();
        }
    }

    @ParameterizedTest
    @MethodSource("caches")
    void parametersArePackedAsDocumented(Map<String, String> options) {
        String[] sides = options.get("kv_cache_dtype").split("/");
        String sinks = options.get("kv_sink_tokens");
        Layer.Sinks policy =
                "massive".equals(sinks)
                        ? Layer.Sinks.MASSIVE
                        : "0".equals(sinks) ? Layer.Sinks.NONE : Layer.Sinks.FIRST;
        int maxSinks = "massive".equals(sinks) ? 20 : Integer.parseInt(sinks);
        int window = Integer.parseInt(options.get("kv_recent_tokens"));
        Layer layer =
                new Layer(
                        3,
                        2,
                        64,
                        window,
                        policy,
                        maxSinks,
                        true,
                        0.125f,
                        side(sides[0], 3),
                        side(sides[sides.length - 1], 1));
        byte[] expected = new byte[Layer.BYTES];
        layer.pack().get(expected);
        try (Sequences on = new Sequences(options)) {
            assertArrayEquals(expected, on.params());
        }
    }

    private static Side side(String name, int rotationHeads) {
        return switch (name) {
            case "auto" -> Side.plain(32);
            case "fp16" -> Side.plain(16);
            default -> Side.affine(name.charAt(name.length() - 1) - '0', rotationHeads, 64);
        };
    }
}
