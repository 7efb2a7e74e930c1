/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.engine.Engine;
import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.evaluate.LayerErrorResult;
import ai.djl.kvquant.evaluate.LayerErrors;
import ai.djl.kvquant.llama.LlamaLayers;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Errors by layer are those of a direct computation. */
class LayerErrorsTest {

    private static final int TOKENS = 50;

    @TempDir Path directory;

    private static double[] doubles(NDArray x) {
        float[] floats = x.toFloatArray();
        double[] doubles = new double[floats.length];
        for (int i = 0; i < floats.length; ++i) {
            doubles[i] = floats[i];
        }
        return doubles;
    }

    private static double[] halves(NDArray x) {
        return doubles(x.toType(DataType.FLOAT16, false).toType(DataType.FLOAT32, false));
    }

    private static double decibel(double[] exact, double[] stored) {
        double signal = 0;
        double noise = 0;
        for (int i = 0; i < exact.length; ++i) {
            signal += exact[i] * exact[i];
            noise += (exact[i] - stored[i]) * (exact[i] - stored[i]);
        }
        return 10 * Math.log10(signal / noise);
    }

    /** Queries are the first heads of qkv, before RoPE, which turns pairs half a head apart. */
    private static double[] query(CacheGeometry g, double[] qkv, int head, int token) {
        int dim = g.headDim();
        int row = (token * (g.numHeads() + 2 * g.numKvHeads()) + head) * dim;
        double[] q = new double[dim];
        for (int i = 0; i < dim / 2; ++i) {
            double angle = token * g.inverseFrequencies()[i];
            double x = qkv[row + i];
            double y = qkv[row + i + dim / 2];
            q[i] = x * Math.cos(angle) - y * Math.sin(angle);
            q[i + dim / 2] = y * Math.cos(angle) + x * Math.sin(angle);
        }
        return q;
    }

    /** Causal attention, [tokens, heads, headDim], over keys and values [kv heads, tokens, dim]. */
    private static double[] attention(CacheGeometry g, double[] qkv, double[] k, double[] v) {
        int dim = g.headDim();
        double[] out = new double[TOKENS * g.numHeads() * dim];
        for (int h = 0; h < g.numHeads(); ++h) {
            int kv = h / (g.numHeads() / g.numKvHeads()) * TOKENS * dim;
            for (int t = 0; t < TOKENS; ++t) {
                double[] q = query(g, qkv, h, t);
                double total = 0;
                double[] sum = new double[dim];
                for (int s = 0; s <= t; ++s) {
                    double score = 0;
                    for (int i = 0; i < dim; ++i) {
                        score += q[i] * k[kv + s * dim + i];
                    }
                    double weight = Math.exp(score * g.scoreScale());
                    total += weight;
                    for (int i = 0; i < dim; ++i) {
                        sum[i] += weight * v[kv + s * dim + i];
                    }
                }
                for (int i = 0; i < dim; ++i) {
                    out[(t * g.numHeads() + h) * dim + i] = sum[i] / total;
                }
            }
        }
        return out;
    }

    @Test
    void ratiosAreThoseOfADirectComputation() throws Exception {
        SmallModel.copy("gqa3-tied", directory);
        int[] text = SmallModel.prompt(TOKENS, 5);
        CacheOptions window =
                new CacheOptions(
                        Map.of("kv_cache_dtype", "rotatekv2", "kv_recent_tokens", "" + TOKENS));
        List<CacheOptions> caches =
                List.of(
                        CacheOptions.of("fp16"),
                        CacheOptions.of("rotatekv2"),
                        window,
                        CacheOptions.of("auto/fp16"));
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model = LlamaModel.load(manager, directory, WeightType.FP32);
                LlamaLayers layers = new LlamaLayers(model, TOKENS);
                LayerErrors errors = new LayerErrors(model, caches, TOKENS)) {
            errors.add(text, layer -> {});
            List<LayerErrorResult> results = errors.results();
            LayerErrorResult half = results.get(0);
            NDArray input = layers.embed(manager, text);
            for (int layer = 0; layer < model.geometry().numLayers(); ++layer) {
                LlamaLayers.Details exact = layers.details(manager, layer, input);
                double[] keys = doubles(exact.keys());
                double[] values = doubles(exact.values());
                double[] qkv = doubles(exact.qkv());
                // fp16 keeps keys after RoPE, and has no window.
                assertEquals(decibel(keys, halves(exact.keys())), half.keys().get(layer), 0.05);
                assertEquals(
                        decibel(values, halves(exact.values())), half.values().get(layer), 1e-3);
                double[] attended = attention(model.geometry(), qkv, keys, values);
                assertTrue(decibel(attended, doubles(exact.attention())) > 100);
                double[] read =
                        attention(
                                model.geometry(),
                                qkv,
                                halves(exact.keys()),
                                halves(exact.values()));
                assertEquals(decibel(attended, read), half.attention().get(layer), 0.5);
                input = exact.hidden();
            }
            for (int layer = 0; layer < model.geometry().numLayers(); ++layer) {
                // Two bits are coarse; a window over everything leaves the rounding of fp16.
                double coarse = results.get(1).attention().get(layer);
                double fine = results.get(2).attention().get(layer);
                assertTrue(coarse < 20 && fine > 50, coarse + " " + fine);
                assertEquals(results.get(1).keys().get(layer), results.get(2).keys().get(layer));
                assertTrue(Double.isInfinite(results.get(3).keys().get(layer)));
                assertEquals(half.values().get(layer), results.get(3).values().get(layer), 1e-9);
            }
        }
    }
}
