/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.engine.Engine;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.evaluate.Needle;
import ai.djl.kvquant.evaluate.NeedlePrompt;
import ai.djl.kvquant.evaluate.NeedlePrompts;
import ai.djl.kvquant.evaluate.NeedleResult;
import ai.djl.kvquant.evaluate.Perplexity;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.kvquant.translate.Tokenizers;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;

/** Pass keys are hidden where they should be, and found by the default model. */
class NeedleTest {

    private static String text(HuggingFaceTokenizer tokenizer, NeedlePrompt prompt) {
        return tokenizer.decode(Arrays.stream(prompt.tokens()).asLongStream().toArray());
    }

    @Test
    void promptsAreAsLongAndAsDeepAsAsked() throws Exception {
        try (HuggingFaceTokenizer tokenizer = Tokenizers.load(DefaultModel.directory())) {
            NeedlePrompts prompts = new NeedlePrompts(tokenizer, NeedlePrompts.FILLER, 1);
            for (int length : new int[] {300, 2048}) {
                for (double depth : new double[] {0, 0.25, 0.5, 1}) {
                    NeedlePrompt prompt = prompts.create(length, depth, 0);
                    String text = text(tokenizer, prompt);
                    String what = length + " " + depth + " " + text;
                    assertTrue(prompt.key().matches("[1-9][0-9]{4}"), prompt.key());
                    // A sentence of the filler is shorter than this.
                    int tokens = prompt.tokens().length + prompt.answerTokens();
                    assertTrue(tokens <= length && tokens > length - 20, what);
                    assertTrue(text.endsWith(NeedlePrompts.ENDING), what);
                    assertEquals(2, text.split(prompt.key(), -1).length - 1, what);
                    String before = text.substring(0, text.indexOf(" The pass key is"));
                    int place = Perplexity.tokenize(tokenizer, before).length;
                    assertEquals(depth * length, place, 60, what);
                    assertTrue(before.isEmpty() || before.endsWith("."), what);
                }
            }
            assertEquals(prompts.create(300, 0.5, 3), prompts.create(300, 0.5, 3));
            assertNotEquals(prompts.create(300, 0.5, 3).key(), prompts.create(300, 0.5, 4).key());
            NeedlePrompts other = new NeedlePrompts(tokenizer, NeedlePrompts.FILLER, 2);
            assertNotEquals(prompts.create(300, 0.5, 3).key(), other.create(300, 0.5, 3).key());
            // Without room for filler, key and ending are left.
            NeedlePrompts words = new NeedlePrompts(tokenizer, "One. Two? Three!", 1);
            int least = 50;
            while (least > 0 && create(words, least - 1) != null) {
                --least;
            }
            assertEquals(least, words.create(least, 1, 0).tokens().length + 6);
            assertThrows(IllegalArgumentException.class, () -> words.create(300, 1.5, 0));
            assertThrows(
                    IllegalArgumentException.class, () -> new NeedlePrompts(tokenizer, " \n", 1));
        }
    }

    private static NeedlePrompt create(NeedlePrompts prompts, int length) {
        try {
            return prompts.create(length, 0, 0);
        } catch (IllegalArgumentException e) {
            assertTrue(e.getMessage().contains("no room for key and ending"), e.getMessage());
            return null;
        }
    }

    /** A short prompt is easy. */
    @Test
    void theDefaultModelFindsAKey() throws Exception {
        CacheOptions fp16 = CacheOptions.of("fp16");
        CacheOptions coarse = CacheOptions.of("rotatekv2");
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model =
                        LlamaModel.load(manager, DefaultModel.directory(), WeightType.AUTO);
                HuggingFaceTokenizer tokenizer = Tokenizers.load(DefaultModel.directory());
                Needle needle = new Needle(model, tokenizer, List.of(fp16, coarse), 400)) {
            NeedlePrompts prompts = new NeedlePrompts(tokenizer, NeedlePrompts.FILLER, 1);
            assertTrue(needle.add(prompts.create(400, 0.5, 0))[0]);
            assertTrue(needle.add(prompts.create(400, 0.5, 1))[0]);
            NeedlePrompt asked = prompts.create(300, 0, 0);
            boolean[] wrong =
                    needle.add(
                            new NeedlePrompt(
                                    asked.tokens(), "00000", asked.answerTokens(), 300, 0));
            assertArrayEquals(new boolean[] {false, false}, wrong);
            List<NeedleResult> results = needle.results();
            assertEquals(4, results.size());
            assertEquals(new NeedleResult("fp16", 400, 0.5, 2, 2), results.get(0));
            assertEquals("rotatekv2", results.get(1).dtype());
            assertEquals(2, results.get(1).trials());
            assertEquals(new NeedleResult("fp16", 300, 0, 1, 0), results.get(2));
            assertThrows(
                    IllegalArgumentException.class,
                    () -> new Needle(model, tokenizer, List.of(fp16), 8193));
        }
    }
}
