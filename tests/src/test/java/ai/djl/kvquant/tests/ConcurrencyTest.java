/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import ai.djl.kvquant.cache.CacheFullException;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.FinishReason;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.ndarray.NDList;
import ai.djl.repository.zoo.ZooModel;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** One model used from several threads, and caches that later prompts take over. */
class ConcurrencyTest {

    private static final int THREADS = 4;
    private static final int NEW_TOKENS = 40;
    private static final Map<String, String> AUTO = Map.of("kv_cache_tokens", "4096");

    /** Sinks are the first tokens, so that they do not depend on how much is prefilled at once. */
    private static final Map<String, String> WINDOW =
            Map.of(
                    "kv_cache_tokens", "4096",
                    "kv_cache_dtype", "rotatekv4",
                    "kv_recent_tokens", "64",
                    "kv_sink_tokens", "4");

    private static final Map<String, String> MASSIVE =
            Map.of(
                    "kv_cache_tokens", "4096",
                    "kv_cache_dtype", "rotatekv4",
                    "kv_recent_tokens", "32");

    @TempDir Path directory;
    private SmallModel model;

    @BeforeEach
    void copyModel() throws Exception {
        model = SmallModel.in(directory);
    }

    static Stream<Map<String, String>> caches() {
        return Stream.of(AUTO, WINDOW, MASSIVE);
    }

    /** Runs a task in each of several threads, which begin together, and returns the results. */
    private static <T> List<T> inThreads(List<Callable<T>> tasks) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(tasks.size());
        CyclicBarrier start = new CyclicBarrier(tasks.size());
        try {
            List<Future<T>> futures = new ArrayList<>();
            for (Callable<T> task : tasks) {
                futures.add(
                        pool.submit(
                                () -> {
                                    start.await();
                                    return task.call();
                                }));
            }
            List<T> results = new ArrayList<>();
            for (Future<T> future : futures) {
                results.add(future.get());
            }
            return results;
        } finally {
            pool.shutdownNow();
        }
    }

    @ParameterizedTest
    @MethodSource("caches")
    void threadsDoNotDisturbEachOther(Map<String, String> cache) throws Exception {
        List<int[]> prompts = new ArrayList<>();
        for (int i = 0; i < 2 * THREADS; ++i) {
            prompts.add(SmallModel.prompt(30 + 37 * i, i));
        }
        List<int[]> expected = new ArrayList<>();
        try (ZooModel<NDList, NDList> alone = model.load(cache)) {
            for (int[] prompt : prompts) {
                LanguageModel lm = SmallModel.languageModel(alone);
                expected.add(SmallModel.greedy(lm, prompt, NEW_TOKENS));
            }
        }
        try (ZooModel<NDList, NDList> shared = model.load(cache)) {
            LanguageModel lm = SmallModel.languageModel(shared);
            List<Callable<List<int[]>>> tasks = new ArrayList<>();
            for (int t = 0; t < THREADS; ++t) {
                int first = t;
                tasks.add(
                        () ->
                                List.of(
                                        SmallModel.greedy(lm, prompts.get(first), NEW_TOKENS),
                                        SmallModel.greedy(
                                                lm, prompts.get(first + THREADS), NEW_TOKENS)));
            }
            List<List<int[]>> results = inThreads(tasks);
            for (int t = 0; t < THREADS; ++t) {
                assertArrayEquals(expected.get(t), results.get(t).get(0), "thread " + t);
                assertArrayEquals(expected.get(t + THREADS), results.get(t).get(1));
            }
        }
    }

    /** All threads take over the cache of the same prompt at once, and each writes its own end. */
    @ParameterizedTest
    @MethodSource("caches")
    void threadsShareOnePrefix(Map<String, String> cache) throws Exception {
        int[] system = SmallModel.prompt(200, 77);
        List<int[]> prompts = new ArrayList<>();
        List<int[]> expected = new ArrayList<>();
        for (int t = 0; t < THREADS; ++t) {
            prompts.add(concat(system, SmallModel.prompt(20 + 9 * t, t)));
            try (ZooModel<NDList, NDList> alone = model.load(cache)) {
                LanguageModel lm = SmallModel.languageModel(alone);
                SmallModel.greedy(lm, system, 1);
                expected.add(SmallModel.greedy(lm, prompts.get(t), NEW_TOKENS));
            }
        }
        try (ZooModel<NDList, NDList> shared = model.load(cache)) {
            LanguageModel lm = SmallModel.languageModel(shared);
            SmallModel.greedy(lm, system, 1);
            List<Callable<int[]>> tasks = new ArrayList<>();
            for (int[] prompt : prompts) {
                tasks.add(() -> SmallModel.greedy(lm, prompt, NEW_TOKENS));
            }
            List<int[]> results = inThreads(tasks);
            for (int t = 0; t < THREADS; ++t) {
                assertArrayEquals(expected.get(t), results.get(t), "thread " + t);
            }
        }
    }

    private static int[] concat(int[] a, int[] b) {
        int[] all = Arrays.copyOf(a, a.length + b.length);
        System.arraycopy(b, 0, all, a.length, b.length);
        return all;
    }

    /** Not quantized: what is read back is what was computed, so the text is the same. */
    @Test
    void takenOverCacheGivesTheSameText() throws Exception {
        int[] prompt = SmallModel.prompt(300, 8);
        try (ZooModel<NDList, NDList> open = model.load(AUTO)) {
            LanguageModel lm = SmallModel.languageModel(open);
            int[] first = SmallModel.greedy(lm, prompt, NEW_TOKENS);
            assertArrayEquals(first, SmallModel.greedy(lm, prompt, NEW_TOKENS));
            int[] turn = concat(concat(prompt, first), new int[] {11, 12, 13});
            int[] second = SmallModel.greedy(lm, turn, NEW_TOKENS);
            try (ZooModel<NDList, NDList> fresh = model.load(AUTO)) {
                LanguageModel other = SmallModel.languageModel(fresh);
                assertArrayEquals(second, SmallModel.greedy(other, turn, NEW_TOKENS));
            }
        }
    }

    /**
     * Quantized, cut within the rollback slack: the same as if no more than the taken over tokens
     * had ever been there.
     */
    @ParameterizedTest
    @ValueSource(ints = {0, 1, 15})
    void cutWithinTheSlackIsExact(int generated) throws Exception {
        int[] prompt = SmallModel.prompt(300, 9);
        int[] prefix = Arrays.copyOf(prompt, prompt.length - 1);
        float[] expected;
        try (ZooModel<NDList, NDList> fresh = model.load(WINDOW)) {
            LanguageModel lm = SmallModel.languageModel(fresh);
            lm.prefill(List.of(prefix)).close();
            expected = logits(lm, prompt);
        }
        try (ZooModel<NDList, NDList> open = model.load(WINDOW)) {
            LanguageModel lm = SmallModel.languageModel(open);
            try (DecodingBatch batch = lm.prefill(List.of(prompt))) {
                for (int i = 0; i < generated; ++i) {
                    batch.step(new int[] {i});
                }
            }
            assertArrayEquals(expected, logits(lm, prompt), 1e-4f);
        }
    }

    static Stream<Map<String, String>> cachesWithoutMassiveSinks() {
        return Stream.of(AUTO, WINDOW);
    }

    /**
     * Quantized, cut far from the end: the window before the cut is computed again, so logits
     * depend on the cut, but not on what followed it. (Massive sinks are chosen over the whole
     * prompt that was there first.)
     */
    @ParameterizedTest
    @MethodSource("cachesWithoutMassiveSinks")
    void cutFarFromTheEndIsRepeatable(Map<String, String> cache) throws Exception {
        int[] prompt = SmallModel.prompt(300, 10);
        List<float[]> results = new ArrayList<>();
        for (int tail = 0; tail < 2; ++tail) {
            try (ZooModel<NDList, NDList> open = model.load(cache)) {
                LanguageModel lm = SmallModel.languageModel(open);
                lm.prefill(List.of(concat(prompt, SmallModel.prompt(60, 20 + tail)))).close();
                results.add(logits(lm, prompt));
                results.add(logits(lm, prompt));
            }
        }
        assertArrayEquals(results.get(0), results.get(2), 1e-3f);
        assertArrayEquals(results.get(1), results.get(3), 1e-3f);
    }

    private static float[] logits(LanguageModel lm, int[] prompt) {
        try (DecodingBatch batch = lm.prefill(List.of(prompt))) {
            return batch.logits().toFloatArray();
        }
    }

    /** More prompts than the pool holds: what was kept goes, and every text is right. */
    @ParameterizedTest
    @ValueSource(strings = {"auto", "rotatekv4"})
    void prefixesGoUnderPressure(String dtype) throws Exception {
        Map<String, String> tight =
                Map.of("kv_cache_dtype", dtype, "kv_cache_tokens", "1024", "max_batch_size", "4");
        List<int[]> expected = new ArrayList<>();
        for (int i = 0; i < 3 * THREADS; ++i) {
            try (ZooModel<NDList, NDList> alone = model.load(tight)) {
                LanguageModel lm = SmallModel.languageModel(alone);
                expected.add(SmallModel.greedy(lm, pressure(i), 20));
            }
        }
        try (ZooModel<NDList, NDList> shared = model.load(tight)) {
            LanguageModel lm = SmallModel.languageModel(shared);
            List<Callable<Void>> tasks = new ArrayList<>();
            for (int t = 0; t < THREADS; ++t) {
                int first = t;
                tasks.add(
                        () -> {
                            for (int i = first; i < 3 * THREADS; i += THREADS) {
                                int[] tokens = SmallModel.greedy(lm, pressure(i), 20);
                                assertArrayEquals(expected.get(i), tokens, "prompt " + i);
                            }
                            return null;
                        });
            }
            inThreads(tasks);
        }
    }

    private static int[] pressure(int i) {
        return SmallModel.prompt(200 + i, 100 + i);
    }

    /** Threads that fight for a pool too small for all of them: text or a clear end, never both. */
    @Test
    void threadsInAFullPool() throws Exception {
        Map<String, String> tight = Map.of("kv_cache_tokens", "384", "max_batch_size", "1");
        int[] prompt = SmallModel.prompt(150, 1);
        try (ZooModel<NDList, NDList> open = model.load(tight)) {
            LanguageModel lm = SmallModel.languageModel(open);
            int[] expected = SmallModel.greedy(lm, prompt, 100);
            List<Callable<GenerationResult>> tasks = new ArrayList<>();
            for (int t = 0; t < THREADS; ++t) {
                tasks.add(() -> generateOrNull(lm, prompt));
            }
            for (GenerationResult result : inThreads(tasks)) {
                if (result != null) {
                    int[] tokens = result.tokens();
                    assertArrayEquals(Arrays.copyOf(expected, tokens.length), tokens);
                    boolean whole = result.finishReason() == FinishReason.LENGTH;
                    assertEquals(whole, result.message().isEmpty());
                    assertEquals(whole, tokens.length == 100);
                }
            }
            assertArrayEquals(expected, SmallModel.greedy(lm, prompt, 100));
        }
    }

    private static GenerationResult generateOrNull(LanguageModel lm, int[] prompt) {
        try {
            return new Generator(lm).generate(List.of(prompt), SmallModel.config(100)).get(0);
        } catch (CacheFullException e) {
            return null;
        }
    }

    static Stream<Arguments> batchesAndThreads() {
        return Stream.of(Arguments.of(AUTO, 3), Arguments.of(WINDOW, 3));
    }

    /** Batches of several rows, whose rows end at different times, beside each other. */
    @ParameterizedTest
    @MethodSource("batchesAndThreads")
    void batchesBesideEachOther(Map<String, String> cache, int rows) throws Exception {
        List<List<int[]>> batches = new ArrayList<>();
        for (int t = 0; t < THREADS; ++t) {
            List<int[]> batch = new ArrayList<>();
            for (int row = 0; row < rows; ++row) {
                batch.add(SmallModel.prompt(20 + 50 * row + t, 1000 + 10 * t + row));
            }
            batches.add(batch);
        }
        List<List<int[]>> expected = new ArrayList<>();
        for (List<int[]> batch : batches) {
            try (ZooModel<NDList, NDList> alone = model.load(cache)) {
                expected.add(shrinking(SmallModel.languageModel(alone), batch));
            }
        }
        try (ZooModel<NDList, NDList> shared = model.load(cache)) {
            LanguageModel lm = SmallModel.languageModel(shared);
            List<Callable<List<int[]>>> tasks = new ArrayList<>();
            batches.forEach(batch -> tasks.add(() -> shrinking(lm, batch)));
            List<List<int[]>> results = inThreads(tasks);
            for (int t = 0; t < THREADS; ++t) {
                for (int i = 0; i < expected.get(t).size(); ++i) {
                    assertArrayEquals(expected.get(t).get(i), results.get(t).get(i));
                }
            }
        }
    }

    /** Greedy tokens of a batch that loses its first row every ten steps. */
    private static List<int[]> shrinking(LanguageModel lm, List<int[]> prompts) {
        List<int[]> steps = new ArrayList<>();
        try (DecodingBatch batch = lm.prefill(prompts)) {
            while (batch.size() > 1) {
                for (int i = 0; i < 10; ++i) {
                    long[] best = batch.logits().argMax(1).toLongArray();
                    int[] tokens = Arrays.stream(best).mapToInt(Math::toIntExact).toArray();
                    steps.add(tokens);
                    batch.step(tokens);
                }
                int[] kept = new int[batch.size() - 1];
                Arrays.setAll(kept, i -> i + 1);
                batch.keep(kept);
            }
        }
        return steps;
    }

    @Test
    void failureInOneThreadLeavesTheOthers() throws Exception {
        int[] prompt = SmallModel.prompt(100, 3);
        try (ZooModel<NDList, NDList> open = model.load(WINDOW)) {
            LanguageModel lm = SmallModel.languageModel(open);
            int[] expected = SmallModel.greedy(lm, prompt, NEW_TOKENS);
            int[] again = SmallModel.greedy(lm, prompt, NEW_TOKENS);
            List<Callable<int[]>> tasks = new ArrayList<>();
            tasks.add(() -> SmallModel.greedy(lm, prompt, NEW_TOKENS));
            tasks.add(
                    () -> {
                        for (int i = 0; i < 20; ++i) {
                            assertThrows(
                                    IllegalArgumentException.class,
                                    () -> lm.prefill(List.of(prompt, new int[] {-1})));
                        }
                        return null;
                    });
            assertArrayEquals(again, inThreads(tasks).get(0));
            assertEquals(NEW_TOKENS, expected.length);
        }
    }
}
