/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.CacheFullException;
import ai.djl.kvquant.generate.ChunkedPrefill;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.ndarray.NDList;
import ai.djl.repository.zoo.ZooModel;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** A prompt whose chunks go through the layers one by one. */
class PartialPrefillTest {

    private static final int TOKENS = 256;
    private static final int CHUNK = 48;

    @TempDir Path directory;

    private ZooModel<NDList, NDList> load(String dtype) throws Exception {
        Map<String, String> options = new HashMap<>();
        options.put("kv_cache_dtype", dtype);
        options.put("kv_cache_tokens", Integer.toString(TOKENS));
        options.put("max_batch_size", "2");
        return SmallModel.in(directory).tokenizer().load(options);
    }

    /** The logits after a prompt, and after some more tokens. */
    private static float[][] logits(LanguageModel model, int[] prompt, int budget) {
        try (ChunkedPrefill prefill = model.startPrefill(prompt, CHUNK)) {
            int calls = 0;
            while (prefill.remaining() > 0) {
                assertTrue(prefill.advance(budget) > 0);
                ++calls;
            }
            int chunks = (prompt.length + CHUNK - 1) / CHUNK;
            assertEquals(budget == 1 ? 2 * chunks : chunks, calls, "the model has 2 layers");
            try (DecodingBatch batch = prefill.finish()) {
                float[][] logits = new float[2][];
                logits[0] = batch.logits().toFloatArray();
                for (int token = 0; token < 20; ++token) {
                    batch.step(new int[] {token});
                }
                logits[1] = batch.logits().toFloatArray();
                return logits;
            }
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"auto", "rotatekv2", "int4"})
    void isTheSameAsAtOnce(String dtype) throws Exception {
        int[] prompt = SmallModel.prompt(130, 1);
        float[][] expected;
        try (ZooModel<NDList, NDList> model = load(dtype)) {
            expected = logits(SmallModel.languageModel(model), prompt, Integer.MAX_VALUE);
        }
        try (ZooModel<NDList, NDList> model = load(dtype)) {
            float[][] logits = logits(SmallModel.languageModel(model), prompt, 1);
            assertArrayEquals(expected[0], logits[0]);
            assertArrayEquals(expected[1], logits[1]);
        }
    }

    /** Nobody takes over a beginning of which some layers hold more than others. */
    @Test
    void closedWithinAChunk() throws Exception {
        int[] prompt = SmallModel.prompt(130, 2);
        try (ZooModel<NDList, NDList> model = load("rotatekv2")) {
            LanguageModel lm = SmallModel.languageModel(model);
            int[] expected = SmallModel.greedy(lm, prompt, 8);
            int[] other = SmallModel.prompt(130, 3);
            int[] expectedOther = SmallModel.greedy(lm, other, 8);
            int[] third = SmallModel.prompt(100, 4);
            for (int parts = 1; parts < 6; ++parts) {
                try (ChunkedPrefill prefill = lm.startPrefill(third, CHUNK)) {
                    for (int i = 0; i < parts && prefill.remaining() > 0; ++i) {
                        prefill.advance(1);
                    }
                }
            }
            assertArrayEquals(expected, SmallModel.greedy(lm, prompt, 8));
            assertArrayEquals(expectedOther, SmallModel.greedy(lm, other, 8));
        }
    }

    /** What a chunk in the making holds is counted, and free again afterwards. */
    @Test
    void pagesAreFreeAfterwards() throws Exception {
        try (ZooModel<NDList, NDList> model = load("auto")) {
            LanguageModel lm = SmallModel.languageModel(model);
            int[] large = SmallModel.prompt(TOKENS, 5);
            ChunkedPrefill prefill = lm.startPrefill(SmallModel.prompt(100, 6), CHUNK);
            prefill.advance(1);
            assertThrows(CacheFullException.class, () -> lm.prefill(List.of(large, large)));
            prefill.close();
            prefill.close();
            lm.prefill(List.of(large)).close();
        }
    }
}
