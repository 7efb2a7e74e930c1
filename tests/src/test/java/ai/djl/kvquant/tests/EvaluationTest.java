/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.engine.Engine;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.calibrate.Calibrator;
import ai.djl.kvquant.evaluate.Perplexity;
import ai.djl.kvquant.evaluate.PerplexityResult;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.kvquant.translate.Tokenizers;
import ai.djl.ndarray.NDManager;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** What evaluation in one pass gives is what decoding gives. */
class EvaluationTest {

    /** Random weights, two layers: deep models turn a difference of rounding into another text. */
    private static final Path CHECKPOINTS =
            DefaultModel.repositoryRoot().resolve("tests/src/test/resources/golden/checkpoints");

    private static final int TOKENS = 200;

    private static int[] randomTokens(int vocabulary) {
        return new Random(7).ints(TOKENS, 0, vocabulary).toArray();
    }

    /** Tokens one by one, each reading the cache that holds those before it. */
    private static double decodedPerplexity(LlamaModel model, CacheOptions options, int[] tokens) {
        double sum = 0;
        try (LlamaLanguageModel language = model.withCache(options);
                DecodingBatch batch = language.prefill(List.of(Arrays.copyOf(tokens, 1)))) {
            for (int i = 1; i < tokens.length; ++i) {
                sum -= logProbability(batch.logits().toFloatArray(), tokens[i]);
                batch.step(new int[] {tokens[i]});
            }
        }
        return Math.exp(sum / (tokens.length - 1));
    }

    private static double logProbability(float[] logits, int token) {
        double sum = 0;
        for (float logit : logits) {
            sum += Math.exp(logit - logits[token]);
        }
        return -Math.log(sum);
    }

    private static CacheOptions options(String settings) {
        Map<String, String> map = new HashMap<>();
        for (String setting : settings.split(" ")) {
            String[] parts = setting.split("=");
            map.put(parts[0], parts[1]);
        }
        return new CacheOptions(map);
    }

    private static List<PerplexityResult> evaluate(
            LlamaModel model, List<CacheOptions> caches, int[] tokens) {
        try (Perplexity perplexity = new Perplexity(model, caches, tokens.length)) {
            perplexity.add(tokens);
            return perplexity.results();
        }
    }

    /**
     * The first token is a sink: prefill would let it read itself exactly, evaluation as stored.
     */
    @ParameterizedTest
    @ValueSource(
            strings = {
                "kv_cache_dtype=fp16",
                "kv_cache_dtype=rotatekv4 kv_sink_tokens=4",
                "kv_cache_dtype=rotatekv2 kv_sink_tokens=1",
                "kv_cache_dtype=rotatekv2 kv_sink_tokens=4 kv_recent_tokens=16",
                "kv_cache_dtype=rotatekv3/fp16 kv_sink_tokens=20 kv_recent_tokens=1",
                "kv_cache_dtype=rotatekv2 kv_sink_tokens=1 kv_recent_tokens=100",
                "kv_cache_dtype=int2 kv_recent_tokens=16",
                "kv_cache_dtype=int4 kv_sink_tokens=1 kv_recent_tokens=0",
                "kv_cache_dtype=int8/rotatekv4 kv_recent_tokens=1",
                "kv_cache_dtype=latent2 kv_recent_tokens=16",
                "kv_cache_dtype=latent1.5/fp16 kv_basis=layer kv_recent_tokens=16",
                "kv_cache_dtype=svdq2.25",
                "kv_cache_dtype=svdq1.25/fp16 kv_recent_tokens=16",
                "kv_cache_dtype=latent2 kv_basis=band16 kv_recent_tokens=16",
                "kv_cache_dtype=rotatekv3 kv_rotation=none kv_value_rotation=false kv_sink_tokens=1",
                "kv_cache_dtype=rotatekv3 kv_rotation=post_rope kv_sink_tokens=4",
                "kv_cache_dtype=rotatekv3 kv_rotation=pre_rope_head kv_order=layer kv_sink_tokens=4",
                "kv_cache_dtype=rotatekv2 kv_skip_layers=0 kv_sink_tokens=4 kv_recent_tokens=16",
                "kv_cache_dtype=int2 kv_skip_layers=1 kv_recent_tokens=16",
                "kv_cache_dtype=latent2 kv_skip_layers=0 kv_recent_tokens=0 kv_sink_tokens=1",
            })
    void onePassEqualsDecodingTokenByToken(String settings) throws Exception {
        for (String name : List.of("gqa3-tied", "gqa8-128")) {
            try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                    LlamaModel model =
                            LlamaModel.load(manager, CHECKPOINTS.resolve(name), WeightType.FP32)) {
                CacheOptions options = calibrated(model, options(settings));
                int[] tokens = randomTokens(model.config().vocabSize());
                double decoded = decodedPerplexity(model, options, tokens);
                List<PerplexityResult> results =
                        evaluate(model, List.of(CacheOptions.of("auto"), options), tokens);
                String what = name + " " + settings;
                // Other settings are percents away.
                assertEquals(decoded, results.get(1).perplexity(), 2.5e-3 * decoded, what);
                assertEquals(0, results.get(0).meanKl());
                assertEquals(1, results.get(0).top1Agreement());
                assertTrue(results.get(1).meanKl() > 0, what);
            }
        }
    }

    /** On another text than the one that is evaluated. */
    private static CacheOptions calibrated(LlamaModel model, CacheOptions options) {
        int vocabulary = model.config().vocabSize();
        int[] text = new Random(8).ints(4 * TOKENS, 0, vocabulary).toArray();
        List<int[]> windows = Calibrator.windows(text, text.length, model.geometry().maxTokens());
        return SmallModel.calibrated(model, options, windows);
    }

    /**
     * A prompt's last token in a chunk of its own, which reads a past, against a decoding step
     * whose window begins at the same token.
     */
    @ParameterizedTest
    @ValueSource(strings = {"int2", "latent2", "int2/fp16"})
    void prefillOverAPastIsLikeDecoding(String dtype) throws Exception {
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model =
                        LlamaModel.load(
                                manager, CHECKPOINTS.resolve("gqa3-tied"), WeightType.FP32)) {
            String settings = "kv_cache_dtype=" + dtype + " kv_recent_tokens=";
            CacheOptions chunks = calibrated(model, options(settings + 15));
            CacheOptions steps = calibrated(model, options(settings + 16));
            int[] tokens = new Random(9).ints(TOKENS, 0, model.config().vocabSize()).toArray();
            // What fills the rest of a chunk of 512 tokens.
            int[] other = Arrays.copyOf(tokens, 512 - TOKENS + 1);
            int[] begun = Arrays.copyOf(tokens, TOKENS - 1);
            try (LlamaLanguageModel first = model.withCache(chunks);
                    LlamaLanguageModel second = model.withCache(steps);
                    DecodingBatch chunked = first.prefill(List.of(other, tokens));
                    DecodingBatch stepped = second.prefill(List.of(other, begun))) {
                stepped.keep(new int[] {1});
                stepped.step(new int[] {tokens[TOKENS - 1]});
                double distance =
                        distance(
                                chunked.logits().get(1).toFloatArray(),
                                stepped.logits().get(0).toFloatArray());
                assertTrue(distance < 1e-3, dtype + ": relative distance " + distance);
            }
        }
    }

    /** Layers that are skipped are those of fp16, whatever the others are. */
    @ParameterizedTest
    @ValueSource(strings = {"rotatekv2", "int2", "latent2", "int2/rotatekv4", "auto/rotatekv2"})
    void skippedLayersAreInHalfPrecision(String dtype) throws Exception {
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model =
                        LlamaModel.load(
                                manager, CHECKPOINTS.resolve("gqa3-tied"), WeightType.FP32)) {
            List<CacheOptions> caches = new ArrayList<>();
            caches.add(CacheOptions.of("fp16"));
            for (String layers : List.of("", "0", "0,1", "1")) {
                String skipped = layers.isEmpty() ? "" : " kv_skip_layers=" + layers;
                String window = dtype.startsWith("auto") ? "" : " kv_recent_tokens=16";
                String settings = "kv_cache_dtype=" + dtype + window + skipped;
                caches.add(calibrated(model, options(settings)));
            }
            int[] tokens = randomTokens(model.config().vocabSize());
            List<PerplexityResult> results = evaluate(model, caches, tokens);
            double all = results.get(1).meanKl();
            double half = results.get(2).meanKl();
            assertTrue(all > 1.2 * half && half > 1e-5, "KL " + all + ", one skipped " + half);
            assertEquals(results.get(0).meanKl(), results.get(3).meanKl());
            PerplexityResult whole = results.get(1);
            assertEquals(16, results.get(3).bitsPerKey());
            // layers differ in bits: together, skipping either is skipping both and none
            assertEquals(
                    16 + whole.bitsPerKey(),
                    results.get(2).bitsPerKey() + results.get(4).bitsPerKey(),
                    1e-9);
            for (int i = 1; i < caches.size(); ++i) {
                double skipped = i == 1 ? 0 : i == 3 ? 1 : 0.5;
                assertEquals(
                        16 * skipped + whole.bitsPerValue() * (1 - skipped),
                        results.get(i).bitsPerValue());
                float[] evaluated = generatedLogits(model, caches.get(i), tokens);
                float[] exact = generatedLogits(model, caches.get(0), tokens);
                assertEquals(i == 3, distance(evaluated, exact) < 1e-4, caches.get(i).toString());
            }
        }
    }

    /** Logits after a prompt and some decoded tokens. */
    private static float[] generatedLogits(LlamaModel model, CacheOptions options, int[] tokens) {
        int prompt = TOKENS - 40;
        try (LlamaLanguageModel language = model.withCache(options);
                DecodingBatch batch = language.prefill(List.of(Arrays.copyOf(tokens, prompt)))) {
            for (int i = prompt; i < TOKENS; ++i) {
                batch.step(new int[] {tokens[i]});
            }
            return batch.logits().toFloatArray();
        }
    }

    /** ||a - b|| / ||b||. */
    private static double distance(float[] a, float[] b) {
        double difference = 0;
        double norm = 0;
        for (int i = 0; i < a.length; ++i) {
            difference += (a[i] - b[i]) * (a[i] - b[i]);
            norm += b[i] * b[i];
        }
        return Math.sqrt(difference / norm);
    }

    /** 15.94441 is what transformers computes in fp32. */
    @Test
    void defaultModelOnTheLicence() throws Exception {
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model =
                        LlamaModel.load(manager, DefaultModel.directory(), WeightType.FP32);
                HuggingFaceTokenizer tokenizer = Tokenizers.load(DefaultModel.directory())) {
            Path licence = DefaultModel.repositoryRoot().resolve("LICENSE");
            int[] text = Perplexity.tokenize(tokenizer, Files.readString(licence));
            assertEquals(2215, text.length);
            List<CacheOptions> caches =
                    List.of(CacheOptions.of("rotatekv4"), CacheOptions.of("auto"));
            List<PerplexityResult> results = evaluate(model, caches, Arrays.copyOf(text, 512));
            assertEquals(15.94441, results.get(1).perplexity(), 1e-3);
            // 2 % for what another order of summation does to 30 layers of rounding.
            assertEquals(16.27, results.get(0).perplexity(), 0.33);
            assertEquals(0.085, results.get(0).meanKl(), 0.02);
            assertEquals(511, results.get(0).tokens());
        }
    }
}
