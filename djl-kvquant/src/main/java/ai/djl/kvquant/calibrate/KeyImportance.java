/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.index.NDIndex;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;

/**
 * How much errors of a layer's keys matter, told from a forward pass: by what they do to the
 * residual stream.
 *
 * <p>A score that is off by e moves a query's attention output by p (v - o) e, where p is the
 * token's probability, v its value and o the output, and the residual stream by W p (v - o) e, with
 * the columns W of the output projection. Its square relative to the mean square of the residual
 * stream is what one squared error of that score costs, in the same unit for all layers. Tokens
 * that are read exactly, sinks and the recent ones, cost nothing.
 */
final class KeyImportance {

    /** Tokens that most caches keep exact. */
    private static final int RECENT = 128;

    /** Of a short text, only so large a part is recent. */
    private static final int RECENT_PART = 8;

    /** Every so many queries are looked at. */
    private static final int STRIDE = 4;

    /** Keys of all texts together whose queries are seen from where the key is. */
    private static final int PLACES = 1024;

    private final CacheGeometry geometry;
    private final int windows;
    private final double[][] tokens;
    private final double[][][] turned;
    private final double[][][] seen;
    private int done;

    /**
     * Prepares to look at texts.
     *
     * @param geometry the model's sizes
     * @param windows the number of texts
     * @param tokens tokens of all texts together, without the first ones of each
     */
    KeyImportance(CacheGeometry geometry, int windows, int tokens) {
        this.geometry = geometry;
        this.windows = windows;
        int heads = geometry.numKvHeads();
        this.tokens = new double[heads][tokens];
        turned = new double[heads][geometry.headDim()][geometry.headDim()];
        seen = new double[heads][geometry.headDim()][geometry.headDim()];
    }

    /**
     * Cost of a squared error of the scores of each token, {@code [kv heads][tokens]}, without the
     * first {@link Calibrator#SKIPPED} tokens of each text.
     */
    double[][] tokens() {
        return tokens;
    }

    /**
     * Second moments of queries after RoPE by the cost of their scores' errors, {@code [kv
     * heads][headDim][headDim]}.
     */
    double[][][] turned() {
        return turned;
    }

    /** The same of queries as they are seen from the key, whose RoPE is undone. */
    double[][][] seen() {
        return seen;
    }

    /**
     * Adds a text.
     *
     * @param samples the text's queries, keys and values, from its first token on
     * @param outputGram W'W of each head's columns W of the output projection, {@code [heads,
     *     headDim, headDim]}
     * @param residual mean square of the residual stream after the layer, {@code [tokens]}
     */
    void add(LayerSamples samples, NDArray outputGram, NDArray residual) {
        NDArray keys = samples.rope(samples.keys());
        NDArray queries = samples.turnedQueries().reshape(samples.queries().getShape());
        NDIndex every = new NDIndex("::" + STRIDE);
        for (int head = 0; head < geometry.numKvHeads(); ++head) {
            try (NDManager scope = keys.getManager().newSubManager()) {
                NDList parts =
                        new NDList(
                                queries.get(every).get(":, " + head),
                                keys.get(":, " + head),
                                samples.values().get(":, " + head),
                                gram(outputGram, head),
                                residual.get(every));
                parts.attach(scope);
                addHead(head, parts, samples);
            }
        }
        done += Math.toIntExact(keys.getShape().get(0)) - Calibrator.SKIPPED;
    }

    private NDArray gram(NDArray outputGram, int head) {
        int perHead = geometry.numHeads() / geometry.numKvHeads();
        return outputGram.get(head * perHead + ":" + (head + 1) * perHead);
    }

    private void addHead(int head, NDList parts, LayerSamples samples) {
        NDArray queries = parts.get(0).transpose(1, 0, 2);
        NDArray cost = cost(queries, parts);
        double[] ofTokens = doubles(cost.sum(new int[] {0, 1}));
        for (int t = Calibrator.SKIPPED; t < ofTokens.length; ++t) {
            tokens[head][done + t - Calibrator.SKIPPED] += ofTokens[t];
        }
        long headDim = geometry.headDim();
        NDArray flat = queries.reshape(new Shape(-1, headDim));
        NDArray ofQueries = cost.sum(new int[] {2}).reshape(new Shape(-1, 1));
        add(flat.mul(ofQueries).transpose().matMul(flat), 1, turned[head]);
        int keys = Math.toIntExact(cost.getShape().get(2));
        int step = Math.max(1, (int) ((long) keys * windows / PLACES));
        NDIndex some = new NDIndex(step / 2 + "::" + step);
        NDArray ofSome = cost.reshape(new Shape(-1, keys)).transpose().get(some);
        add(seen(flat, ofSome, samples, some), step, seen[head]);
    }

    /** Cost of a squared error of each score, {@code [queries per kv head, queries, tokens]}. */
    private NDArray cost(NDArray queries, NDList parts) {
        NDArray values = parts.get(2).expandDims(0);
        NDArray gram = parts.get(3);
        int tokens = Math.toIntExact(values.getShape().get(1));
        Shape shape = new Shape(queries.getShape().get(1), tokens);
        NDArray far = queries.getManager().create(far(tokens), shape);
        NDArray future = queries.getManager().create(future(tokens), shape);
        NDArray scores =
                queries.matMul(parts.get(1).transpose().expandDims(0))
                        .mul(geometry.scoreScale())
                        .add(future);
        NDArray probabilities = scores.softmax(2);
        NDArray outputs = probabilities.matMul(values);
        NDArray projected = outputs.matMul(gram);
        NDArray ofValues = values.matMul(gram).mul(values).sum(new int[] {2}).expandDims(1);
        NDArray ofOutputs = projected.mul(outputs).sum(new int[] {2}).expandDims(2);
        NDArray both = projected.matMul(values.transpose(0, 2, 1)).mul(2);
        NDArray distance = NDArrays.maximum(ofValues.sub(both).add(ofOutputs), 0);
        NDArray relative = distance.div(parts.get(4).reshape(new Shape(1, -1, 1)));
        return probabilities.square().mul(relative).mul(far);
    }

    /** 1 where a query reads a token from its code, [queries, tokens]. */
    private static float[] far(int tokens) {
        int recent = Math.min(RECENT, tokens / RECENT_PART);
        int queries = (tokens + STRIDE - 1) / STRIDE;
        float[] far = new float[queries * tokens];
        for (int q = 0; q < queries; ++q) {
            for (int t = Calibrator.SKIPPED; t <= q * STRIDE - recent; ++t) {
                far[q * tokens + t] = 1;
            }
        }
        return far;
    }

    /** What keeps queries from tokens after them, [queries, tokens]. */
    private static float[] future(int tokens) {
        int queries = (tokens + STRIDE - 1) / STRIDE;
        float[] future = new float[queries * tokens];
        for (int q = 0; q < queries; ++q) {
            for (int t = q * STRIDE + 1; t < tokens; ++t) {
                future[q * tokens + t] = -1e30f;
            }
        }
        return future;
    }

    /** Sum over some keys of their queries' second moments, turned back to the key's position. */
    private NDArray seen(NDArray queries, NDArray cost, LayerSamples samples, NDIndex some) {
        NDArray weighted = cost.expandDims(2).mul(queries.expandDims(0));
        NDArray moments = weighted.transpose(0, 2, 1).matMul(queries.expandDims(0));
        NDArray cos = samples.cos().get(some);
        NDArray sin = samples.sin().get(some).neg();
        NDArray once = LayerSamples.rope(moments, cos, sin).transpose(0, 2, 1);
        return LayerSamples.rope(once, cos, sin).sum(new int[] {0});
    }

    private static void add(NDArray matrix, double factor, double[][] to) {
        double[] values = doubles(matrix);
        int n = to.length;
        for (int i = 0; i < values.length; ++i) {
            to[i / n][i % n] += factor * values[i];
        }
    }

    private static double[] doubles(NDArray x) {
        return x.toType(DataType.FLOAT64, false).toDoubleArray();
    }
}
