/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.CacheFullException;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.FinishReason;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.kvquant.generate.TokenStream;
import ai.djl.ndarray.NDList;
import ai.djl.repository.zoo.ZooModel;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** A cache without room: what is asked for fails with a clear message, all else goes on. */
class CacheFullTest {

    /** Pages of 64 tokens: two, and one more, since a sequence may leave one partly empty. */
    private static final int TOKENS = 128;

    private static final int ROOM = TOKENS + 64;
    private static final int[] PROMPT = SmallModel.prompt(100, 1);

    @TempDir Path directory;
    private ZooModel<NDList, NDList> model;

    private LanguageModel open(String... options) throws Exception {
        Map<String, String> map = new HashMap<>();
        map.put("kv_cache_tokens", Integer.toString(TOKENS));
        map.put("max_batch_size", "1");
        for (int i = 0; i < options.length; i += 2) {
            map.put(options[i], options[i + 1]);
        }
        model = SmallModel.in(directory).load(map);
        return SmallModel.languageModel(model);
    }

    @AfterEach
    void close() {
        model.close();
    }

    private static void contains(String message, String... fragments) {
        for (String fragment : fragments) {
            assertTrue(message.contains(fragment), "no '" + fragment + "' in: " + message);
        }
    }

    /** What the model generates when there is room for everything. */
    private int[] reference(int[] prompt, int count, String... options) throws Exception {
        try (ZooModel<NDList, NDList> other = roomy(options)) {
            return SmallModel.greedy(SmallModel.languageModel(other), prompt, count);
        }
    }

    private ZooModel<NDList, NDList> roomy(String... options) throws Exception {
        Map<String, String> map = new HashMap<>();
        for (int i = 0; i < options.length; i += 2) {
            map.put(options[i], options[i + 1]);
        }
        return SmallModel.in(directory).load(map);
    }

    @Test
    void promptThatNeverFits() throws Exception {
        LanguageModel lm = open();
        int[] prompt = SmallModel.prompt(ROOM + 1, 2);
        CacheFullException error =
                assertThrows(
                        CacheFullException.class,
                        () -> new Generator(lm).generate(List.of(prompt), SmallModel.config(1)));
        contains(
                error.getMessage(),
                "A prompt of 193 tokens does not fit into a KV cache of 128 tokens",
                "Set kv_cache_tokens or kv_cache_memory higher, or shorten the prompt");
        assertArrayEquals(reference(PROMPT, 8), SmallModel.greedy(lm, PROMPT, 8));
    }

    @Test
    void promptsThatDoNotFitTogether() throws Exception {
        LanguageModel lm = open();
        List<int[]> prompts = List.of(PROMPT, SmallModel.prompt(100, 2));
        CacheFullException error =
                assertThrows(CacheFullException.class, () -> lm.prefill(prompts));
        contains(
                error.getMessage(),
                "The KV cache is full: all 3 pages of 64 tokens are in use (room for 128 tokens",
                "needs 100 more",
                "set kv_cache_tokens or kv_cache_memory higher",
                "close batches that are not used");
        // The pages of the prompt that did fit are free again.
        assertArrayEquals(reference(PROMPT, 8), SmallModel.greedy(lm, PROMPT, 8));
    }

    @ParameterizedTest
    @ValueSource(strings = {"auto", "fp16", "rotatekv4", "rotatekv2"})
    void poolFillsUpWhileDecoding(String dtype) throws Exception {
        LanguageModel lm = open("kv_cache_dtype", dtype);
        int room = ROOM - PROMPT.length;
        int[] expected = reference(PROMPT, 200, "kv_cache_dtype", dtype);
        GenerationResult result =
                new Generator(lm).generate(List.of(PROMPT), SmallModel.config(200)).get(0);
        assertEquals(FinishReason.CACHE_FULL, result.finishReason());
        contains(
                result.message(),
                "The KV cache is full: all 3 pages of 64 tokens are in use (room for 128 tokens",
                "a sequence of 192 tokens needs 1 more",
                "set kv_cache_tokens");
        // The token that had no room is generated, too: its logits were there.
        assertArrayEquals(Arrays.copyOf(expected, room + 1), result.tokens());
        for (int i = 0; i < 3; ++i) {
            int[] other = SmallModel.prompt(150, 10 + i);
            int[] again = reference(other, 5, "kv_cache_dtype", dtype);
            assertArrayEquals(again, SmallModel.greedy(lm, other, 5));
        }
    }

    @Test
    void streamEndsWithWhatItHas() throws Exception {
        LanguageModel lm = open();
        List<Integer> tokens = new ArrayList<>();
        try (TokenStream stream = new Generator(lm).stream(PROMPT, SmallModel.config(200))) {
            while (stream.hasNext()) {
                tokens.add(stream.next().id());
            }
            assertEquals(FinishReason.CACHE_FULL, stream.result().finishReason());
            contains(stream.result().message(), "The KV cache is full");
        }
        assertEquals(ROOM - PROMPT.length + 1, tokens.size());
    }

    @Test
    void stepKeepsTheBatchUsable() throws Exception {
        LanguageModel lm = open();
        DecodingBatch held = lm.prefill(List.of(SmallModel.prompt(64, 3)));
        try (DecodingBatch batch = lm.prefill(List.of(SmallModel.prompt(128, 4)))) {
            float[] logits = batch.logits().toFloatArray();
            assertThrows(CacheFullException.class, () -> batch.step(new int[] {7}));
            assertEquals(128, batch.length(0));
            assertArrayEquals(logits, batch.logits().toFloatArray());
            // Room appears when the other batch is closed, as the message says.
            held.close();
            batch.step(new int[] {7});
            assertEquals(129, batch.length(0));
        }
    }

    @Test
    void retiredPrefixesMakeRoom() throws Exception {
        LanguageModel lm = open();
        for (int i = 0; i < 20; ++i) {
            int[] prompt = SmallModel.prompt(120 + i, i);
            assertEquals(5, SmallModel.greedy(lm, prompt, 5).length);
        }
    }

    /** The second prompt shares all pages with the prefix that must go to make room. */
    @ParameterizedTest
    @ValueSource(strings = {"auto", "rotatekv4"})
    void samePromptAgainInAFullPool(String dtype) throws Exception {
        LanguageModel lm = open("kv_cache_dtype", dtype);
        int[] prompt = SmallModel.prompt(ROOM - 4, 5);
        int[] first = SmallModel.greedy(lm, prompt, 4);
        assertEquals(4, first.length);
        for (int i = 0; i < 3; ++i) {
            GenerationResult again =
                    new Generator(lm).generate(List.of(prompt), SmallModel.config(4)).get(0);
            assertEquals(FinishReason.LENGTH, again.finishReason(), again.message());
            if ("auto".equals(dtype)) {
                assertArrayEquals(first, again.tokens());
            }
        }
    }

    @Test
    void batchBeyondTheExactPages() throws Exception {
        LanguageModel lm = open("kv_cache_dtype", "rotatekv4", "kv_cache_tokens", "2048");
        List<int[]> prompts = new ArrayList<>();
        for (int i = 0; i < 5; ++i) {
            prompts.add(SmallModel.prompt(20, i));
        }
        CacheFullException error =
                assertThrows(CacheFullException.class, () -> lm.prefill(prompts));
        contains(
                error.getMessage(),
                "all exact pages, enough for 4 sequences, are in use",
                "max_batch_size");
        try (DecodingBatch batch = lm.prefill(prompts.subList(0, 4))) {
            assertEquals(4, batch.size());
        }
    }

    @Test
    void exceptionsLeakNoPages() throws Exception {
        LanguageModel lm = open();
        int[] expected = SmallModel.greedy(lm, PROMPT, 8);
        for (int i = 0; i < 50; ++i) {
            List<int[]> prompts = List.of(SmallModel.prompt(90, i), SmallModel.prompt(170, i));
            assertThrows(CacheFullException.class, () -> lm.prefill(prompts));
        }
        try (DecodingBatch batch = lm.prefill(List.of(SmallModel.prompt(ROOM, 1)))) {
            assertEquals(ROOM, batch.length(0));
        }
        assertFalse(Arrays.equals(new int[8], expected));
        assertArrayEquals(expected, SmallModel.greedy(lm, PROMPT, 8));
    }
}
