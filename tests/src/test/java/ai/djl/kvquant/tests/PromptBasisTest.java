/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.engine.Engine;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.cache.SvdqSchedule;
import ai.djl.kvquant.evaluate.Perplexity;
import ai.djl.kvquant.evaluate.PerplexityResult;
import ai.djl.kvquant.generate.CacheUsage;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.llama.LlamaLayers;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** SVDq with kv_basis=prompt: every prompt is stored in the principal axes of its own keys. */
class PromptBasisTest {

    private static final Path CHECKPOINTS =
            DefaultModel.repositoryRoot().resolve("tests/src/test/resources/golden/checkpoints");

    private static final int SINKS = 4;
    private static final int TOKENS = 200;
    private static final int STEPS = 20;

    private static LlamaModel model(NDManager manager, String name) throws Exception {
        return LlamaModel.load(manager, CHECKPOINTS.resolve(name), WeightType.FP32);
    }

    private static int[] text(int seed, int length) {
        return new Random(seed).ints(length, 0, 256).toArray();
    }

    private static CacheOptions options(LlamaModel model, String dtype, String basis) {
        CacheOptions options = new CacheOptions(Map.of("kv_cache_dtype", dtype, "kv_basis", basis));
        return SmallModel.calibrated(model, options, List.of(text(1, 500)));
    }

    /** What a prompt's keys say, computed from the definition, in the form of a calibration. */
    private static Calibration direct(LlamaModel model, int[] prompt, double bits) {
        Calibration.Builder out = new Calibration.Builder(Map.of());
        try (LlamaLayers layers = new LlamaLayers(model, prompt.length);
                NDManager scope = layers.newManager()) {
            NDArray hidden = layers.embed(scope, prompt);
            for (int layer = 0; layer < model.geometry().numLayers(); ++layer) {
                LlamaLayers.Output output = layers.run(scope, layer, hidden);
                hidden = output.hidden();
                write(out, layer, keys(model, output.qkv()), model, bits);
            }
        }
        return out.build();
    }

    private static double[][] keys(LlamaModel model, NDArray qkv) {
        int rowHeads = Math.toIntExact(qkv.getShape().get(1));
        int headDim = model.geometry().headDim();
        float[] values = qkv.toFloatArray();
        double[][] keys = new double[values.length / rowHeads / headDim - SINKS][];
        for (int t = 0; t < keys.length; ++t) {
            int begin = ((t + SINKS) * rowHeads + model.geometry().numHeads()) * headDim;
            keys[t] = new double[model.geometry().channels()];
            for (int c = 0; c < keys[t].length; ++c) {
                keys[t][c] = values[begin + c];
            }
        }
        return keys;
    }

    private static void write(
            Calibration.Builder out, int layer, double[][] keys, LlamaModel model, double bits) {
        int n = keys[0].length;
        int heads = model.geometry().numKvHeads();
        int headDim = n / heads;
        double[] mean = new double[n];
        Arrays.stream(keys).forEach(key -> add(mean, key, 1.0 / keys.length));
        double[][] covariance = new double[n][n];
        for (double[] key : keys) {
            add(key, mean, -1);
            for (int i = 0; i < n; ++i) {
                add(covariance[i], key, key[i] / keys.length);
            }
        }
        double[][] axes = Eigen.axes(covariance);
        for (double[] axis : axes) {
            Arrays.setAll(axis, c -> half(axis[c]));
        }
        int[] widths = SvdqSchedule.of(bits).widths();
        float[] basis = new float[n * n];
        float[] inverse = new float[n * n];
        float[] steps = new float[2 * n];
        for (int rank = 0; rank < n; ++rank) {
            int place = rank % heads * headDim + rank / heads;
            for (int c = 0; c < n; ++c) {
                basis[place * n + c] = (float) axes[rank][c];
                inverse[c * n + place] = (float) axes[rank][c];
            }
            double[] axis = axes[rank];
            double[] latents = Arrays.stream(keys).mapToDouble(key -> dot(axis, key)).toArray();
            double low = Arrays.stream(latents).min().orElseThrow();
            double high = Arrays.stream(latents).max().orElseThrow();
            int width = widths[rank * 16 / n];
            steps[2 * place] = width == 0 ? 0 : (float) low;
            steps[2 * place + 1] = width == 0 ? 1 : (float) (high - low) / ((1 << width) - 1);
        }
        float[] floats = new float[n];
        for (int c = 0; c < n; ++c) {
            floats[c] = (float) mean[c];
        }
        out.put(layer, "keys.mean", floats);
        out.put(layer, "keys.basis", basis, n, n);
        out.put(layer, "keys.inverse", inverse, n, n);
        out.put(layer, "keys.widths", widths);
        out.put(layer, "keys.steps", steps, n, 2);
    }

    /** Of at most 1, rounded to fp16: bases are kept so. */
    private static double half(double x) {
        double unit = Math.max(0x1p-24, Math.scalb(1.0, Math.getExponent(x) - 10));
        return Math.rint(x / unit) * unit;
    }

    private static void add(double[] sum, double[] x, double factor) {
        for (int i = 0; i < sum.length; ++i) {
            sum[i] += factor * x[i];
        }
    }

    private static double dot(double[] a, double[] b) {
        double sum = 0;
        for (int i = 0; i < a.length; ++i) {
            sum += a[i] * b[i];
        }
        return sum;
    }

    /** Logits after the prompt and after each of some steps. */
    private static List<float[]> decoded(LlamaModel model, CacheOptions options, int[] prompt) {
        List<float[]> logits = new ArrayList<>();
        try (LlamaLanguageModel language = model.withCache(options);
                DecodingBatch batch = language.prefill(List.of(prompt))) {
            logits.add(batch.logits().toFloatArray());
            for (int token : text(2, STEPS)) {
                batch.step(new int[] {token});
                logits.add(batch.logits().toFloatArray());
            }
        }
        return logits;
    }

    private static double distance(float[] a, float[] b) {
        double difference = 0;
        double norm = 0;
        for (int i = 0; i < a.length; ++i) {
            difference += (a[i] - b[i]) * (a[i] - b[i]);
            norm += b[i] * b[i];
        }
        return Math.sqrt(difference / norm);
    }

    @ParameterizedTest
    @CsvSource({"gqa3-tied, 2.25", "gqa8-128, 1.25"})
    void aPromptsOwnBasisIsThatOfItsKeys(String name, double bits) throws Exception {
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model = model(manager, name)) {
            String dtype = "svdq" + bits + "/fp16";
            int[] prompt = text(3, TOKENS);
            CacheOptions own = options(model, dtype, "prompt");
            CacheOptions offline = options(model, dtype, "layer");
            CacheOptions expected =
                    CacheOptions.of(dtype).withCalibration(direct(model, prompt, bits));
            List<float[]> ofPrompt = decoded(model, own, prompt);
            List<float[]> ofDefinition = decoded(model, expected, prompt);
            List<float[]> ofCalibration = decoded(model, offline, prompt);
            double worst = 0;
            double other = 0;
            for (int i = 0; i < ofPrompt.size(); ++i) {
                worst = Math.max(worst, distance(ofPrompt.get(i), ofDefinition.get(i)));
                other = Math.max(other, distance(ofCalibration.get(i), ofDefinition.get(i)));
            }
            // A code in a thousand rounds the other way.
            assertTrue(worst < 0.1 * other, name + ": " + worst + ", another basis " + other);
        }
    }

    @Test
    void evaluationTakesTheBasisOfTheWholeWindow() throws Exception {
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model = model(manager, "gqa3-tied")) {
            int[] window = text(4, TOKENS);
            List<CacheOptions> caches =
                    List.of(
                            options(model, "svdq1.25/fp16", "prompt"),
                            CacheOptions.of("svdq1.25/fp16")
                                    .withCalibration(direct(model, window, 1.25)),
                            options(model, "svdq1.25/fp16", "layer"));
            try (Perplexity perplexity = new Perplexity(model, caches, TOKENS)) {
                perplexity.add(window);
                List<PerplexityResult> results = perplexity.results();
                double expected = results.get(1).meanKl();
                assertEquals(expected, results.get(0).meanKl(), 0.02 * expected);
                assertTrue(Math.abs(results.get(2).meanKl() - expected) > 0.05 * expected);
                assertEquals(1.25, results.get(1).bitsPerKey());
                double basis = 16.0 * 72 + 32 + 64.0 * 72 / 192;
                assertEquals(1.25 + basis / TOKENS, results.get(0).bitsPerKey(), 1e-9);
                double stored = results.get(1).storedBitsPerKey();
                assertEquals(stored + basis / TOKENS, results.get(0).storedBitsPerKey(), 1e-9);
            }
        }
    }

    /** Rows with bases of their own, in one batch with short ones, which have the calibrated. */
    @Test
    void batchesAreLikeTheirRowsAlone() throws Exception {
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model = model(manager, "gqa3-tied")) {
            CacheOptions options = options(model, "svdq2.25", "prompt");
            List<int[]> prompts =
                    List.of(text(5, TOKENS), text(6, 30), text(7, TOKENS + 9), text(8, 40));
            try (LlamaLanguageModel language = model.withCache(options);
                    DecodingBatch batch = language.prefill(prompts)) {
                for (int token : text(2, STEPS)) {
                    batch.step(new int[] {token, token, token, token});
                }
                for (int row = 0; row < prompts.size(); ++row) {
                    List<float[]> alone = decoded(model, options, prompts.get(row));
                    float[] together = batch.logits().get(row).toFloatArray();
                    assertTrue(distance(together, alone.get(STEPS)) < 1e-4, "row " + row);
                }
                float[] before = batch.logits().get(2).toFloatArray();
                // Row 2 twice: forks share the basis.
                batch.keep(new int[] {2, 1, 2});
                assertArrayEquals(before, batch.logits().get(0).toFloatArray());
                batch.step(new int[] {1, 2, 1});
                assertArrayEquals(
                        batch.logits().get(0).toFloatArray(), batch.logits().get(2).toFloatArray());
            }
        }
    }

    @Test
    void theBasisCountsAndPromptsAreNotShared() throws Exception {
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model = model(manager, "gqa3-tied")) {
            CacheOptions options = options(model, "svdq2.25", "prompt");
            int shortest = SvdqSchedule.of(2.25).shortestPrompt(192) + SINKS;
            double basis = 16.0 * 96 + 32 + 64.0 * 96 / 192;
            try (LlamaLanguageModel language = model.withCache(options)) {
                float[] first = null;
                for (int length : new int[] {shortest - 1, shortest, TOKENS, TOKENS}) {
                    try (DecodingBatch batch = language.prefill(List.of(text(9, length)))) {
                        CacheUsage usage = batch.usage();
                        double extra = length < shortest ? 0 : basis / length;
                        assertEquals(2.25 + extra, usage.bitsPerKey(), 1e-9, length + " tokens");
                        batch.step(new int[] {5});
                        float[] logits = batch.logits().toFloatArray();
                        if (length == TOKENS && first != null) {
                            assertArrayEquals(first, logits);
                        }
                        first = length == TOKENS ? logits : null;
                    }
                }
            }
        }
    }
}
