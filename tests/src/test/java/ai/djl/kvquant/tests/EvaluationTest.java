/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.engine.Engine;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.CacheOptions;
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
            })
    void onePassEqualsDecodingTokenByToken(String settings) throws Exception {
        CacheOptions options = options(settings);
        for (String name : List.of("gqa3-tied", "gqa8-128")) {
            try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                    LlamaModel model =
                            LlamaModel.load(manager, CHECKPOINTS.resolve(name), WeightType.FP32)) {
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
