/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.engine.Engine;
import ai.djl.kvquant.cache.CacheFullException;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.SharedPrefill;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** A prompt computed once and stored in several caches is what each prefill would have stored. */
class SharedPrefillTest {

    /** One chunk of prefill: what it reads is exact, as in the shared pass. */
    private static final int PROMPT = 300;

    private static final int STEPS = 40;
    private static final int ROOM = 2048;

    @TempDir Path directory;
    private NDManager manager;
    private LlamaModel model;

    @BeforeEach
    void load() throws Exception {
        SmallModel files = SmallModel.copy("gqa3-tied", directory);
        files.config("max_position_embeddings", Integer.toString(ROOM));
        manager = Engine.getEngine("PyTorch").newBaseManager();
        model = LlamaModel.load(manager, directory, WeightType.FP32);
    }

    @AfterEach
    void close() {
        model.close();
        manager.close();
    }

    private CacheOptions options(String settings) {
        Map<String, String> map = new HashMap<>();
        for (String setting : settings.split(" ")) {
            String[] parts = setting.split("=");
            map.put(parts[0], parts[1]);
        }
        List<int[]> windows = List.of(SmallModel.prompt(400, 3));
        CacheOptions options = SmallModel.calibrated(model, new CacheOptions(map), windows);
        return options.forOneSequence(ROOM);
    }

    /** Memory that was never written is not compared by chance. */
    private LlamaLanguageModel zeroed(CacheOptions options) {
        LlamaLanguageModel language = model.withCache(options);
        for (NDList pools : language.cache().pools().subList(0, 2)) {
            pools.forEach(pool -> pool.muli(0));
        }
        return language;
    }

    private static int greedy(DecodingBatch batch) {
        try (NDArray best = batch.logits().argMax(-1)) {
            return Math.toIntExact(best.toLongArray()[0]);
        }
    }

    private static int[] decode(DecodingBatch batch, int steps) {
        int[] tokens = new int[steps];
        for (int i = 0; i < steps; ++i) {
            tokens[i] = greedy(batch);
            batch.step(new int[] {tokens[i]});
        }
        return tokens;
    }

    private static void assertSamePages(KvCache expected, KvCache actual) {
        for (int kind = 0; kind < 2; ++kind) {
            NDList first = expected.pools().get(kind);
            NDList second = actual.pools().get(kind);
            for (int layer = 0; layer < first.size(); ++layer) {
                byte[] bytes = first.get(layer).toByteArray();
                assertTrue(
                        IntStream.range(0, bytes.length).anyMatch(i -> bytes[i] != 0) || kind > 0);
                assertArrayEquals(
                        bytes,
                        second.get(layer).toByteArray(),
                        "pool " + kind + ", layer " + layer);
            }
        }
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "kv_cache_dtype=auto",
                "kv_cache_dtype=fp16",
                "kv_cache_dtype=rotatekv2",
                "kv_cache_dtype=rotatekv4/fp16 kv_sink_tokens=4 kv_recent_tokens=16",
                "kv_cache_dtype=int2 kv_recent_tokens=16",
                "kv_cache_dtype=int3",
                "kv_cache_dtype=latent2 kv_recent_tokens=100 kv_skip_layers=0",
            })
    void pagesAndTokensAreThoseOfPrefill(String settings) {
        CacheOptions options = options(settings);
        int[] prompt = SmallModel.prompt(PROMPT, 1);
        try (LlamaLanguageModel usual = zeroed(options);
                LlamaLanguageModel other = zeroed(options("kv_cache_dtype=rotatekv3"));
                LlamaLanguageModel shared = zeroed(options);
                SharedPrefill prefill = new SharedPrefill(model, PROMPT);
                DecodingBatch expected = usual.prefill(List.of(prompt))) {
            List<DecodingBatch> batches = prefill.run(prompt, List.of(other, shared));
            try (DecodingBatch first = batches.get(0);
                    DecodingBatch second = batches.get(1)) {
                assertArrayEquals(expected.logits().toFloatArray(), second.logits().toFloatArray());
                assertArrayEquals(first.logits().toFloatArray(), second.logits().toFloatArray());
                assertSamePages(usual.cache(), shared.cache());
                assertEquals(PROMPT, second.length(0));
                assertArrayEquals(decode(expected, STEPS), decode(second, STEPS));
                assertArrayEquals(expected.logits().toFloatArray(), second.logits().toFloatArray());
                assertSamePages(usual.cache(), shared.cache());
            }
        }
    }

    /** Chunks of prefill are merged by another order of summation. */
    @Test
    void aLongPromptIsThatOfPrefillInChunks() {
        int[] prompt = SmallModel.prompt(1100, 2);
        CacheOptions options = options("kv_cache_dtype=auto");
        try (LlamaLanguageModel usual = model.withCache(options);
                LlamaLanguageModel shared = model.withCache(options);
                SharedPrefill prefill = new SharedPrefill(model, prompt.length);
                DecodingBatch expected = usual.prefill(List.of(prompt));
                DecodingBatch actual = prefill.run(prompt, List.of(shared)).get(0)) {
            assertArrayEquals(
                    expected.logits().toFloatArray(), actual.logits().toFloatArray(), 1e-3f);
            assertArrayEquals(decode(expected, STEPS), decode(actual, STEPS));
        }
    }

    @Test
    void aCacheCanBeUsedAgain() {
        int[] prompt = SmallModel.prompt(PROMPT, 1);
        CacheOptions options = options("kv_cache_dtype=int4").forOneSequence(PROMPT + STEPS);
        try (LlamaLanguageModel cache = model.withCache(options);
                SharedPrefill prefill = new SharedPrefill(model, PROMPT)) {
            int[][] answers = new int[20][];
            for (int i = 0; i < answers.length; ++i) {
                try (DecodingBatch batch = prefill.run(prompt, List.of(cache)).get(0)) {
                    answers[i] = decode(batch, STEPS);
                }
            }
            assertEquals(1, Arrays.stream(answers).map(Arrays::toString).distinct().count());
        }
    }

    @Test
    void whatCanNotBeStoredIsToldAndNothingIsHeld() throws Exception {
        int[] prompt = SmallModel.prompt(PROMPT, 1);
        CacheOptions small = CacheOptions.of("auto").forOneSequence(100);
        CacheOptions large = CacheOptions.of("auto").forOneSequence(PROMPT);
        try (LlamaModel another = LlamaModel.load(manager, directory, WeightType.FP32);
                LlamaLanguageModel foreign = another.withCache(large);
                LlamaLanguageModel tight = model.withCache(small);
                LlamaLanguageModel roomy = model.withCache(large);
                SharedPrefill prefill = new SharedPrefill(model, PROMPT)) {
            assertThrows(
                    CacheFullException.class, () -> prefill.run(prompt, List.of(roomy, tight)));
            IllegalArgumentException e =
                    assertThrows(
                            IllegalArgumentException.class,
                            () -> prefill.run(prompt, List.of(roomy, foreign)));
            assertTrue(e.getMessage().contains("of the model that computes it"), e.getMessage());
            e =
                    assertThrows(
                            IllegalArgumentException.class,
                            () -> prefill.run(new int[PROMPT + 1], List.of(roomy)));
            assertTrue(e.getMessage().contains("allowed: 1 to " + PROMPT), e.getMessage());
            prefill.run(prompt, List.of(roomy)).get(0).close();
        }
    }
}
