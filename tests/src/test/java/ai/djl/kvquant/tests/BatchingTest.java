/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.engine.Engine;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.generate.BatchLimits;
import ai.djl.kvquant.generate.BatchScheduler;
import ai.djl.kvquant.generate.ChunkedPrefill;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.FinishReason;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.ndarray.NDManager;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Requests of many threads that share one model: each gets the tokens that it would get alone. */
class BatchingTest {

    private static final int CHUNK = 48;
    private static final int NEW_TOKENS = 40;

    /** Prompts that are long enough have parameters of their own. */
    private static final String PROMPT_BASIS = "svdq2.25, a basis per prompt";

    @TempDir Path directory;
    private NDManager manager;
    private LlamaModel model;

    @BeforeEach
    void load() throws Exception {
        SmallModel.in(directory);
        manager = Engine.getEngine("PyTorch").newBaseManager();
        model = LlamaModel.load(manager, directory, WeightType.FP32);
    }

    @AfterEach
    void close() {
        model.close();
        manager.close();
    }

    /** Calibrated on some tokens; the window is short, so that much is read from codes. */
    private LlamaLanguageModel cache(String dtype, int tokens, int maxBatchSize) {
        Map<String, String> map = new HashMap<>();
        map.put("kv_cache_dtype", PROMPT_BASIS.equals(dtype) ? "svdq2.25" : dtype);
        if (PROMPT_BASIS.equals(dtype)) {
            map.put("kv_basis", "prompt");
        }
        map.put("kv_cache_tokens", Integer.toString(tokens));
        map.put("max_batch_size", Integer.toString(maxBatchSize));
        if (!"auto".equals(dtype)) {
            map.put("kv_recent_tokens", "32");
        }
        List<int[]> windows = List.of(SmallModel.prompt(400, 3));
        CacheOptions options = SmallModel.calibrated(model, new CacheOptions(map), windows);
        return model.withCache(options);
    }

    /** Room for all that a test does. */
    private LlamaLanguageModel roomy(String dtype) {
        return cache(dtype, 8192, 4);
    }

    /** From one token to several chunks. */
    private static int[] prompt(int i) {
        return SmallModel.prompt(1 + 37 * i % 200, 500 + i);
    }

    /** One request after the other; no prompt begins like another. */
    private List<int[]> alone(String dtype, int count) {
        List<int[]> expected = new ArrayList<>();
        try (LlamaLanguageModel lm = roomy(dtype);
                BatchScheduler scheduler = scheduler(lm, 1)) {
            for (int i = 0; i < count; ++i) {
                expected.add(generate(new Generator(scheduler, null), prompt(i)).tokens());
            }
        }
        return expected;
    }

    private static BatchScheduler scheduler(LanguageModel lm, int rows) {
        return new BatchScheduler(lm, new BatchLimits(rows, 64, CHUNK));
    }

    private static GenerationResult generate(Generator generator, int[] prompt) {
        return generator.generate(List.of(prompt), SmallModel.config(NEW_TOKENS)).get(0);
    }

    private static List<GenerationResult> together(Generator generator, int count)
            throws Exception {
        ExecutorService threads = Executors.newCachedThreadPool();
        try {
            List<Future<GenerationResult>> futures = new ArrayList<>();
            for (int i = 0; i < count; ++i) {
                int[] prompt = prompt(i);
                futures.add(threads.submit(() -> generate(generator, prompt)));
            }
            List<GenerationResult> results = new ArrayList<>();
            for (Future<GenerationResult> future : futures) {
                results.add(future.get());
            }
            return results;
        } finally {
            threads.shutdownNow();
        }
    }

    private void requireSame(String dtype, LanguageModel lm, int rows, int count) throws Exception {
        List<int[]> expected = alone(dtype, count);
        try (BatchScheduler scheduler = scheduler(lm, rows)) {
            List<GenerationResult> results = together(new Generator(scheduler, null), count);
            for (int i = 0; i < count; ++i) {
                GenerationResult result = results.get(i);
                assertEquals(FinishReason.LENGTH, result.finishReason(), result.message());
                assertArrayEquals(expected.get(i), result.tokens(), "request " + i);
            }
        }
    }

    static Stream<Arguments> batches() {
        return Stream.of("auto", "int2", "rotatekv4", "rotatekv2", PROMPT_BASIS)
                .flatMap(dtype -> Stream.of(1, 2, 3, 5, 8, 16).map(n -> Arguments.of(dtype, n)));
    }

    @ParameterizedTest
    @MethodSource("batches")
    void sameTokensAsAlone(String dtype, int rows) throws Exception {
        try (LlamaLanguageModel lm = roomy(dtype)) {
            requireSame(dtype, lm, rows, rows);
        }
    }

    /** Room for about three requests of sixteen: many give way and go on later. */
    @ParameterizedTest
    @ValueSource(strings = {"auto", "int2", "rotatekv4", PROMPT_BASIS})
    void sameTokensInAPoolThatIsTooSmall(String dtype) throws Exception {
        try (LlamaLanguageModel lm = cache(dtype, 384, 2)) {
            CountingModel counting = new CountingModel(lm);
            requireSame(dtype, counting, 16, 16);
            assertTrue(counting.prefills > 16, "no request was put back");
        }
    }

    /** Counts the prompts that are computed. */
    private static final class CountingModel implements LanguageModel {

        private final LanguageModel model;
        private volatile int prefills;

        CountingModel(LanguageModel model) {
            this.model = model;
        }

        @Override
        public int vocabularySize() {
            return model.vocabularySize();
        }

        @Override
        public int contextLength() {
            return model.contextLength();
        }

        @Override
        public DecodingBatch prefill(List<int[]> prompts) {
            return model.prefill(prompts);
        }

        @Override
        public ChunkedPrefill startPrefill(int[] prompt, int chunkTokens) {
            prefills++;
            return model.startPrefill(prompt, chunkTokens);
        }
    }

    @Test
    void sixtyFourRequests() throws Exception {
        try (LlamaLanguageModel lm = cache("rotatekv4", 1024, 4)) {
            requireSame("rotatekv4", lm, 16, 64);
        }
    }

    /** What was cancelled holds nothing: a prompt that needs the whole pool fits. */
    @Test
    void cancelledRequestsFreeTheirPages() {
        try (LlamaLanguageModel lm = cache("auto", 128, 1);
                BatchScheduler scheduler = scheduler(lm, 16)) {
            Generator generator = new Generator(scheduler, null);
            for (int i = 0; i < 5; ++i) {
                generator.stream(SmallModel.prompt(100, i), SmallModel.config(50)).close();
            }
            try (DecodingBatch whole = lm.prefill(List.of(SmallModel.prompt(192, 9)))) {
                assertEquals(192, whole.length(0));
            }
        }
    }

    /** A prompt takes over the beginning of one that is still being decoded. */
    @ParameterizedTest
    @ValueSource(strings = {"auto", "int2", "rotatekv4"})
    void promptsShareTheirBeginningWhileDecoded(String dtype) {
        int[] system = SmallModel.prompt(200, 1);
        int[] one = concat(system, SmallModel.prompt(20, 2));
        int[] other = concat(system, SmallModel.prompt(30, 3));
        try (LlamaLanguageModel lm = roomy(dtype);
                LlamaLanguageModel fresh = roomy(dtype);
                DecodingBatch batch = prefill(lm, one);
                DecodingBatch alone = prefill(fresh, one)) {
            try (ChunkedPrefill second = lm.startPrefill(other, CHUNK)) {
                int window = "auto".equals(dtype) ? 0 : 32;
                assertEquals(30 + window, second.remaining());
                for (int i = 0; i < 20; ++i) {
                    if (second.remaining() > 0) {
                        second.advance();
                    }
                    batch.step(new int[] {i});
                    alone.step(new int[] {i});
                }
                assertArrayEquals(
                        alone.logits().toFloatArray(), batch.logits().toFloatArray(), 1e-4f);
                batch.add(second.finish());
                assertEquals(2, batch.size());
            }
        }
    }

    private static int[] concat(int[] a, int[] b) {
        int[] all = Arrays.copyOf(a, a.length + b.length);
        System.arraycopy(b, 0, all, a.length, b.length);
        return all;
    }

    /** Rows that change their batch go on as if they had always been in one. */
    @ParameterizedTest
    @ValueSource(strings = {"auto", "int2", "rotatekv4"})
    void rowsMoveBetweenBatches(String dtype) {
        try (LlamaLanguageModel lm = roomy(dtype);
                LlamaLanguageModel other = roomy(dtype)) {
            DecodingBatch batch = prefill(lm, prompt(5));
            batch.add(prefill(lm, prompt(3)));
            batch.add(prefill(lm, prompt(9)));
            assertEquals(3, batch.size());
            float[] middle = batch.logits().get(1).toFloatArray();
            DecodingBatch taken = batch.take(1);
            assertArrayEquals(middle, taken.logits().get(0).toFloatArray());
            assertArrayEquals(new int[] {prompt(5).length, prompt(9).length}, lengths(batch));
            taken.step(new int[] {7});
            batch.step(new int[] {8, 9});
            batch.add(taken);
            assertThrows(IllegalStateException.class, taken::logits);
            try (DecodingBatch fresh = prefill(other, prompt(3))) {
                fresh.step(new int[] {7});
                float[] expected = fresh.logits().get(0).toFloatArray();
                assertArrayEquals(expected, batch.logits().get(2).toFloatArray(), 1e-4f);
            }
            assertThrows(IllegalArgumentException.class, () -> batch.take(3));
            assertThrows(IllegalArgumentException.class, () -> batch.add(batch));
            try (DecodingBatch foreign = prefill(other, prompt(4))) {
                assertThrows(IllegalArgumentException.class, () -> batch.add(foreign));
            }
            batch.close();
        }
    }

    private static int[] lengths(DecodingBatch batch) {
        int[] lengths = new int[batch.size()];
        for (int i = 0; i < lengths.length; ++i) {
            lengths[i] = batch.length(i);
        }
        return lengths;
    }

    private static DecodingBatch prefill(LanguageModel lm, int[] prompt) {
        try (ChunkedPrefill prefill = lm.startPrefill(prompt, CHUNK)) {
            assertThrows(IllegalStateException.class, prefill::finish);
            while (prefill.remaining() > 0) {
                int before = prefill.remaining();
                prefill.advance();
                assertTrue(before - prefill.remaining() <= CHUNK);
            }
            return prefill.finish();
        }
    }

    /** Not quantized: parts of a prompt make what the whole prompt at once makes. */
    @Test
    void chunksGiveTheLogitsOfTheWholePrompt() {
        try (LlamaLanguageModel one = roomy("auto");
                LlamaLanguageModel other = roomy("auto")) {
            int[] prompt = SmallModel.prompt(300, 4);
            try (DecodingBatch whole = one.prefill(List.of(prompt));
                    DecodingBatch parts = prefill(other, prompt)) {
                assertEquals(whole.length(0), parts.length(0));
                assertArrayEquals(
                        whole.logits().toFloatArray(), parts.logits().toFloatArray(), 1e-4f);
            }
        }
    }
}
