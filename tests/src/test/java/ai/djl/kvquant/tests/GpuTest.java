/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import ai.djl.Device;
import ai.djl.engine.Engine;
import ai.djl.kvquant.cache.CacheDtype;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.calibrate.Calibrator;
import ai.djl.kvquant.evaluate.Perplexity;
import ai.djl.kvquant.generate.ChunkedPrefill;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.llama.LlamaGradients;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.RandomModel;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.ndarray.NDManager;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;

/** Models on a GPU against the same on the CPU; skipped where there is no GPU. */
class GpuTest {

    private static final Path CHECKPOINTS =
            Path.of("src/test/resources/golden/checkpoints").toAbsolutePath();
    private static final int PROMPT = 300;
    private static final int STEPS = 24;

    private static NDManager cpu;
    private static NDManager gpu;

    @BeforeAll
    static void open() {
        Engine engine = Engine.getEngine("PyTorch");
        boolean found = engine.getGpuCount() > 0;
        if (!found) {
            System.out.println("GpuTest is skipped: DJL sees no GPU.");
        }
        assumeTrue(found, "DJL sees no GPU");
        cpu = engine.newBaseManager(Device.cpu());
        gpu = engine.newBaseManager(Device.gpu());
    }

    @AfterAll
    static void close() {
        if (cpu != null) {
            cpu.close();
            gpu.close();
        }
    }

    private static int[] tokens(int count, long seed) {
        return new Random(seed).ints(count, 0, 256).toArray();
    }

    /** Logits of two sequences, the first one prefilled in chunks, at the prompt and each step. */
    private static List<float[]> logits(LlamaModel model, CacheOptions options) {
        List<float[]> all = new ArrayList<>();
        try (LlamaLanguageModel language = model.withCache(options);
                ChunkedPrefill first = language.startPrefill(tokens(PROMPT, 1), 64)) {
            while (first.remaining() > 0) {
                first.advance(200);
            }
            try (DecodingBatch batch = first.finish()) {
                batch.add(language.prefill(List.of(tokens(PROMPT / 3, 2))));
                all.add(batch.logits().toFloatArray());
                int[] next = tokens(2 * STEPS, 3);
                for (int i = 0; i < STEPS; ++i) {
                    batch.step(new int[] {next[2 * i], next[2 * i + 1]});
                    all.add(batch.logits().toFloatArray());
                }
                batch.keep(new int[] {0, 0, 1});
                batch.step(new int[] {7, 8, 9});
                all.add(batch.logits().toFloatArray());
            }
        }
        return all;
    }

    /** The root of the mean squared difference, relative to the deviation of what is expected. */
    private static double error(List<float[]> expected, List<float[]> found) {
        double squares = 0;
        double variance = 0;
        assertEquals(expected.size(), found.size());
        for (int i = 0; i < expected.size(); ++i) {
            assertEquals(expected.get(i).length, found.get(i).length);
            double mean = 0;
            for (float x : expected.get(i)) {
                mean += x / expected.get(i).length;
            }
            for (int j = 0; j < expected.get(i).length; ++j) {
                squares += Math.pow(expected.get(i)[j] - found.get(i)[j], 2);
                variance += Math.pow(expected.get(i)[j] - mean, 2);
            }
        }
        return Math.sqrt(squares / variance);
    }

    private static void assertClose(String what, double limit, double error) {
        System.out.printf(Locale.ROOT, "GPU against CPU, %s: %.6f%n", what, error);
        assertTrue(error < limit, what + ": " + error);
    }

    private static CacheOptions sized(String dtype) {
        return new CacheOptions(
                Map.of(
                        "kv_cache_dtype", dtype,
                        "kv_cache_tokens", "2048",
                        "max_batch_size", "4"));
    }

    @ParameterizedTest
    @CsvSource({
        "gqa4, fp32, 1e-4",
        "gqa4, auto, 0.02",
        "gqa4, bf16, 0.1",
        "bf16, auto, 0.1",
        "mqa-128, auto, 0.02",
        "mha, auto, 0.02",
        "gqa8-128, fp32, 1e-4",
        "gqa3-tied, auto, 0.02",
        "attention-bias-128, auto, 0.02",
        "mlp-bias, auto, 0.02",
        "rope-llama3, auto, 0.02",
        "f32, auto, 1e-4"
    })
    void modelsComputeTheSame(String checkpoint, String dtype, double limit) throws Exception {
        Path directory = CHECKPOINTS.resolve(checkpoint);
        try (LlamaModel expected = LlamaModel.load(cpu, directory, WeightType.AUTO);
                LlamaModel found = LlamaModel.load(gpu, directory, WeightType.parse(dtype))) {
            CacheOptions options = sized("auto");
            double error = error(logits(expected, options), logits(found, options));
            assertClose(checkpoint + " " + dtype, limit, error);
        }
    }

    static List<String> dtypes() {
        return CacheDtype.names();
    }

    private static CacheOptions calibrated(LlamaModel model, String dtype) {
        CacheOptions options = sized(dtype);
        if (!options.needsCalibration()) {
            return options;
        }
        Calibrator calibrator = new Calibrator(model, List.of(tokens(400, 4), tokens(400, 5)));
        return options.withCalibration(
                calibrator.run(List.of(options), Map.of(), layers -> {}).get(0));
    }

    @ParameterizedTest
    @MethodSource("dtypes")
    void cachesStoreTheSame(String dtype) throws Exception {
        Path directory = CHECKPOINTS.resolve("attention-bias-128");
        try (LlamaModel expected = LlamaModel.load(cpu, directory, WeightType.FP32);
                LlamaModel found = LlamaModel.load(gpu, directory, WeightType.FP32);
                LlamaModel half = LlamaModel.load(gpu, directory, WeightType.AUTO)) {
            CacheOptions options = calibrated(expected, dtype);
            List<float[]> reference = logits(expected, options);
            // Where a key lies between two codes, rounding decides: few bits, large steps.
            assertClose(dtype + " fp32", 0.05, error(reference, logits(found, options)));
            assertClose(dtype + " fp16", 0.25, error(reference, logits(half, options)));
            CacheOptions own = calibrated(half, dtype);
            assertClose(dtype + " calibrated", 0.4, error(reference, logits(half, own)));
            List<float[]> again = logits(half, options);
            List<float[]> once = logits(half, options);
            for (int i = 0; i < again.size(); ++i) {
                assertArrayEquals(once.get(i), again.get(i), "repeated, " + i);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"fp16", "int2", "rotatekv2", "latent2"})
    void evaluationAgrees(String dtype) throws Exception {
        Path directory = CHECKPOINTS.resolve("gqa4");
        try (LlamaModel expected = LlamaModel.load(cpu, directory, WeightType.FP32);
                LlamaModel found = LlamaModel.load(gpu, directory, WeightType.AUTO)) {
            CacheOptions options = calibrated(expected, dtype);
            double[] values = new double[2];
            int i = 0;
            for (LlamaModel model : List.of(expected, found)) {
                try (Perplexity perplexity = new Perplexity(model, List.of(options), 400)) {
                    perplexity.add(tokens(400, 6));
                    values[i++] = perplexity.results().get(0).perplexity();
                }
            }
            assertClose("perplexity " + dtype, 0.02, Math.abs(values[1] / values[0] - 1));
        }
    }

    /** DJL's own searches: their arrays, and those of its translator, are on the GPU then. */
    @ParameterizedTest
    @CsvSource({"greedy, auto", "greedy, fp16", "beam, auto", "contrastive, auto"})
    void textGeneratorSearchesTheSame(String search, String dtype) throws Exception {
        List<int[]> prompts = SearchGolden.prompts(SearchGolden.of("gqa4"));
        Map<String, String> options = Map.of("kv_cache_dtype", dtype, "kv_cache_tokens", "4096");
        List<List<Set<List<Integer>>>> answers = new ArrayList<>();
        for (Device device : List.of(Device.cpu(), Device.gpu())) {
            try (Searches searches = Searches.load(device, CHECKPOINTS.resolve("gqa4"), options);
                    NDManager manager = searches.newManager()) {
                assertEquals(device, manager.getDevice());
                List<List<Integer>> rows = searches.run(search, prompts, SearchGolden.NEW_TOKENS);
                answers.add(SearchGolden.answers(rows, prompts.size()));
                assertEquals(0, searches.block().heldSequences());
            }
        }
        assertEquals(answers.get(0), answers.get(1));
    }

    @Test
    void mostProbableTokensAreThoseOfTheLogits() {
        try (LlamaModel model = LlamaModel.random(gpu, RandomModel.SMOLLM2_135M, WeightType.AUTO);
                LlamaLanguageModel language = model.withCache(sized("fp16"));
                DecodingBatch batch = language.randomBatch(3, 100)) {
            // All logits are equal before the first step.
            assertArrayEquals(new int[3], batch.mostProbable().orElseThrow());
            for (int step = 0; step < 5; ++step) {
                batch.step(tokens(3, step));
                float[] logits = batch.logits().toFloatArray();
                int[] best = batch.mostProbable().orElseThrow();
                for (int row = 0; row < 3; ++row) {
                    int begin = row * logits.length / 3;
                    int found = best[row];
                    for (int i = 0; i < logits.length / 3; ++i) {
                        float excess = logits[begin + i] - logits[begin + found];
                        assertTrue(excess < 0 || (excess == 0 && i >= found), i + " or " + found);
                    }
                }
            }
        }
    }

    @Test
    void gradientsAreRefused() throws Exception {
        try (LlamaModel model =
                LlamaModel.load(gpu, CHECKPOINTS.resolve("gqa4"), WeightType.AUTO)) {
            assertTrue(
                    assertThrows(IllegalArgumentException.class, () -> new LlamaGradients(model))
                            .getMessage()
                            .contains("device cpu"));
        }
    }

    /** Weights, pools and parameters go with the model; libtorch may keep a little for itself. */
    @Test
    void memoryComesBack() {
        long before = 0;
        for (int round = 0; round < 3; ++round) {
            try (LlamaModel model =
                    LlamaModel.random(gpu, RandomModel.SMOLLM2_135M, WeightType.AUTO)) {
                model.operators().releaseCachedMemory();
                CacheOptions options = CacheOptions.of("rotatekv2");
                try (LlamaLanguageModel language = model.withCache(options)) {
                    long free = model.operators().gpu().freeBytes();
                    long all = model.operators().gpu().totalBytes();
                    assertTrue(free < 0.3 * all, free + " of " + all + " bytes are free");
                    try (DecodingBatch batch = language.randomBatch(2, 1000)) {
                        batch.step(new int[] {1, 2});
                    }
                }
                model.operators().releaseCachedMemory();
                long free = model.operators().gpu().freeBytes();
                if (round == 1) {
                    before = free;
                } else if (round == 2) {
                    assertTrue(before - free < 8 << 20, before + " then " + free);
                }
            }
        }
    }
}
