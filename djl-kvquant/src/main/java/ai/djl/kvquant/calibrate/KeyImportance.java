/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.index.NDIndex;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

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

    /** Recent tokens that caches with a window keep exact by default. */
    private static final int RECENT = 128;

    /** Of a short text, only so large a part is recent. */
    private static final int RECENT_PART = 8;

    /** Every so many queries are looked at. */
    private static final int STRIDE = 4;

    /** Keys of all texts together whose queries are seen from where the key is. */
    private static final int PLACES = 512;

    /** Queries of a text that see these keys. */
    private static final int VIEWERS = 384;

    private final CacheGeometry geometry;
    private final boolean recent;
    private final int windows;
    private final double[][] tokens;
    private final double[][][] turned;
    private final double[][][] seen;
    private final Map<Integer, Masks> masks = new HashMap<>();
    private int done;

    /**
     * Prepares to look at texts.
     *
     * @param geometry the model's sizes
     * @param recent whether recent tokens are read exactly
     * @param windows the number of texts
     * @param tokens tokens of all texts together, without the first ones of each
     */
    KeyImportance(CacheGeometry geometry, boolean recent, int windows, int tokens) {
        this.geometry = geometry;
        this.recent = recent;
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
        int length = Math.toIntExact(residual.getShape().get(0));
        Masks ofText =
                masks.computeIfAbsent(length, n -> Masks.of(outputGram.getManager(), n, recent));
        NDArray keys = samples.rope(samples.keys());
        NDArray queries = samples.turnedQueries().reshape(samples.queries().getShape());
        NDIndex every = new NDIndex("::" + STRIDE);
        NDArray relative = ofText.far().div(residual.get(every).expandDims(1));
        for (int head = 0; head < geometry.numKvHeads(); ++head) {
            try (NDManager scope = keys.getManager().newSubManager()) {
                NDList parts =
                        new NDList(
                                queries.get(every).get(":, " + head),
                                keys.get(":, " + head),
                                samples.values().get(":, " + head),
                                gram(outputGram, head));
                parts.attach(scope);
                addHead(head, parts, ofText.future(), relative, samples);
            }
        }
        done += Math.toIntExact(keys.getShape().get(0)) - Calibrator.SKIPPED;
    }

    private NDArray gram(NDArray outputGram, int head) {
        int perHead = geometry.numHeads() / geometry.numKvHeads();
        return outputGram.get(head * perHead + ":" + (head + 1) * perHead);
    }

    private void addHead(
            int head, NDList parts, NDArray future, NDArray far, LayerSamples samples) {
        NDArray queries = parts.get(0).transpose(1, 0, 2);
        NDArray cost = cost(queries, parts, future, far, geometry.scoreScale());
        double[] ofTokens = doubles(cost.sum(new int[] {0, 1}));
        for (int t = Calibrator.SKIPPED; t < ofTokens.length; ++t) {
            tokens[head][done + t - Calibrator.SKIPPED] += ofTokens[t];
        }
        long headDim = geometry.headDim();
        NDArray flat = queries.reshape(new Shape(-1, headDim));
        NDArray ofQueries = cost.sum(new int[] {2}).reshape(new Shape(-1, 1));
        add(flat.mul(ofQueries).transpose().matMul(flat), 1, turned[head]);
        int keys = Math.toIntExact(cost.getShape().get(2));
        NDArray rows = cost.reshape(new Shape(-1, keys));
        int keyStep = step((long) keys * windows, PLACES);
        int queryStep = step(rows.getShape().get(0), VIEWERS);
        NDIndex some = every(keyStep);
        NDArray ofSome = rows.get(every(queryStep)).transpose().get(some);
        NDArray viewers = flat.get(every(queryStep));
        add(seen(viewers, ofSome, samples, some), (double) keyStep * queryStep, seen[head]);
    }

    /** The step that leaves so many of a number at most. */
    private static int step(long number, int most) {
        return (int) Math.max(1, (number + most - 1) / most);
    }

    private static NDIndex every(int step) {
        return new NDIndex(step / 2 + "::" + step);
    }

    /**
     * Cost of a squared error of each score, {@code [queries per kv head, queries, tokens]}. In
     * place, for memory is what it takes.
     */
    private static NDArray cost(
            NDArray queries, NDList parts, NDArray future, NDArray far, double scale) {
        NDArray values = parts.get(2).expandDims(0);
        NDArray gram = parts.get(3);
        NDArray scores = queries.mul(scale).matMul(parts.get(1).transpose().expandDims(0));
        NDArray probabilities = scores.addi(future).softmax(2);
        NDArray outputs = probabilities.matMul(values);
        NDArray projected = outputs.matMul(gram);
        NDArray ofValues = values.matMul(gram).mul(values).sum(new int[] {2}).expandDims(1);
        NDArray ofOutputs = projected.mul(outputs).sum(new int[] {2}).expandDims(2);
        NDArray distance = projected.mul(-2).matMul(values.transpose(0, 2, 1));
        distance.addi(ofValues).addi(ofOutputs).muli(probabilities).muli(probabilities);
        // rounding may leave less than nothing
        return distance.muli(far).maximum(0);
    }

    /**
     * What queries see of a text's tokens, [queries, tokens].
     *
     * @param far 1 where a query reads a token from its code
     * @param future what keeps queries from tokens after them
     */
    private record Masks(NDArray far, NDArray future) {

        static Masks of(NDManager manager, int tokens, boolean recent) {
            int exact = recent ? Math.min(RECENT, tokens / RECENT_PART) : 0;
            int queries = (tokens + STRIDE - 1) / STRIDE;
            float[] far = new float[queries * tokens];
            float[] future = new float[queries * tokens];
            for (int q = 0; q < queries; ++q) {
                int first = q * tokens;
                int seen = Math.max(Calibrator.SKIPPED, q * STRIDE - exact + 1);
                Arrays.fill(far, first + Calibrator.SKIPPED, first + seen, 1);
                Arrays.fill(future, first + q * STRIDE + 1, first + tokens, -1e30f);
            }
            Shape shape = new Shape(queries, tokens);
            return new Masks(manager.create(far, shape), manager.create(future, shape));
        }
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
