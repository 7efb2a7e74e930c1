/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.util.Arrays;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.IntStream;

/**
 * What a layer's projections made of the calibration text.
 *
 * @param geometry the model's sizes
 * @param queries before RoPE, FLOAT32 {@code [tokens, kv heads, queries per kv head, headDim]}
 * @param keys before RoPE, FLOAT32 {@code [tokens, kv heads, headDim]}
 * @param values FLOAT32 {@code [tokens, kv heads, headDim]}
 * @param cos of RoPE's angles, FLOAT32 {@code [tokens, 1, headDim / 2]}
 * @param sin of RoPE's angles, FLOAT32 {@code [tokens, 1, headDim / 2]}
 * @param gradients of the loss; null if they were not taken
 * @param importances how much errors of keys matter where recent tokens are read exactly, and where
 *     they are not, as far as somebody asks; empty with gradients
 */
record LayerSamples(
        CacheGeometry geometry,
        NDArray queries,
        NDArray keys,
        NDArray values,
        NDArray cos,
        NDArray sin,
        Gradients gradients,
        Map<Boolean, KeyImportance> importances) {

    /** Tokens that nobody attends to matter this much of the mean. */
    private static final double LEAST_WEIGHT = 0.1;

    /**
     * Gradients of the loss.
     *
     * @param keys with respect to keys before RoPE, in their shape
     * @param values with respect to values, in their shape
     */
    record Gradients(NDArray keys, NDArray values) {}

    /** A head that nobody attends to matters this much of the mean. */
    private static final double LEAST_HEAD = 1e-4;

    /** Splits the projections of a layer. */
    static LayerSamples of(CacheGeometry geometry, NDArray qkv, NDArray cos, NDArray sin) {
        int heads = geometry.numHeads();
        int kvHeads = geometry.numKvHeads();
        NDArray queries = qkv.get(":, 0:" + heads);
        return new LayerSamples(
                geometry,
                queries.reshape(-1, kvHeads, heads / kvHeads, geometry.headDim()),
                qkv.get(":, " + heads + ":" + (heads + kvHeads)),
                qkv.get(":, " + (heads + kvHeads) + ":"),
                cos,
                sin,
                null,
                Map.of());
    }

    /** These samples with the gradients at them. */
    LayerSamples with(Gradients found) {
        return new LayerSamples(geometry, queries, keys, values, cos, sin, found, importances);
    }

    /** These samples with what is known of the importance of their keys. */
    LayerSamples with(Map<Boolean, KeyImportance> known) {
        return new LayerSamples(geometry, queries, keys, values, cos, sin, gradients, known);
    }

    /** These samples for a cache that reads its recent tokens exactly, or not. */
    LayerSamples readBy(boolean recent) {
        return with(
                importances.containsKey(recent)
                        ? Map.of(recent, importances.get(recent))
                        : Map.of());
    }

    /** What is known; null: nothing. */
    private KeyImportance importance() {
        return importances.values().stream().findFirst().orElse(null);
    }

    /**
     * How much errors of each token's key matter, {@code [kv heads][tokens]}: all alike if there is
     * neither gradient nor importance.
     */
    double[][] tokenWeights() {
        double[][] weights = new double[geometry.numKvHeads()][];
        for (int head = 0; head < weights.length; ++head) {
            weights[head] = tokenWeights(head);
        }
        return weights;
    }

    private double[] tokenWeights(int head) {
        double[] weights;
        if (gradients != null) {
            NDArray ofHead = gradients.keys().get(":, " + head).toType(DataType.FLOAT64, false);
            weights = ofHead.square().sum(new int[] {1}).toDoubleArray();
        } else if (importance() != null) {
            weights = importance().tokens()[head].clone();
        } else {
            weights = new double[Math.toIntExact(keys.getShape().get(0))];
        }
        double mean = Arrays.stream(weights).average().orElse(0);
        double least = mean > 0 ? LEAST_WEIGHT * mean : 1;
        return Arrays.stream(weights).map(weight -> weight + least).toArray();
    }

    /** The mean of keys over tokens by {@link #tokenWeights}, {@code [kv heads, headDim]}. */
    NDArray weightedKeyMean(double[][] tokenWeights) {
        NDArray weights = column(tokenWeights);
        return keys.toType(DataType.FLOAT64, false)
                .mul(weights)
                .sum(new int[] {0})
                .div(weights.sum(new int[] {0}))
                .toType(DataType.FLOAT32, false);
    }

    /** Weights {@code [kv heads][tokens]} as FLOAT64 {@code [tokens, kv heads, 1]}. */
    NDArray column(double[][] weights) {
        double[] flat = Arrays.stream(weights).flatMapToDouble(Arrays::stream).toArray();
        NDArray matrix =
                keys.getManager().create(flat, new Shape(weights.length, weights[0].length));
        return matrix.transpose().expandDims(2);
    }

    /**
     * Squares of gradients relative to the largest one, in the order of the elements; null if there
     * are none.
     */
    double[] squaredGradients(Function<Gradients, NDArray> side) {
        if (gradients == null) {
            return null;
        }
        NDArray wide = side.apply(gradients).toType(DataType.FLOAT64, false).flatten();
        NDArray squares = wide.square();
        return squares.div(squares.max()).toDoubleArray();
    }

    /** The mean of keys over tokens, {@code [kv heads, headDim]}. */
    NDArray keyMean() {
        return keys.mean(new int[] {0});
    }

    /** Turns {@code [tokens, heads, headDim]} to the tokens' positions. */
    NDArray rope(NDArray x) {
        return rope(x, cos, sin);
    }

    /** Turns {@code [tokens, n, headDim]} by angles {@code [tokens, 1, headDim / 2]}. */
    static NDArray rope(NDArray x, NDArray cos, NDArray sin) {
        long half = cos.getShape().get(2);
        NDList parts = x.split(2, 2);
        NDArray a = parts.get(0);
        NDArray b = parts.get(1);
        if (a.getShape().get(2) != half) {
            throw new IllegalArgumentException("rope: " + x.getShape() + " has other heads");
        }
        NDArray first = a.mul(cos).sub(b.mul(sin));
        NDArray second = b.mul(cos).add(a.mul(sin));
        return first.concat(second, 2);
    }

    /** Queries after RoPE, {@code [tokens, heads, headDim]}. */
    NDArray turnedQueries() {
        return rope(queries.reshape(new Shape(-1, geometry.numHeads(), geometry.headDim())));
    }

    /**
     * How much squared errors of each channel of keys after RoPE matter, {@code [kv
     * heads][headDim]}.
     */
    double[][] turnedWeights() {
        if (gradients != null) {
            return rows(rope(gradients.keys()).square().mean(new int[] {0}));
        }
        return importance() == null ? queryEnergy() : diagonals(importance().turned());
    }

    private static double[][] diagonals(double[][][] matrices) {
        return Arrays.stream(matrices)
                .map(m -> IntStream.range(0, m.length).mapToDouble(i -> m[i][i]).toArray())
                .toArray(double[][]::new);
    }

    /**
     * How much errors of keys before RoPE matter: a metric of each kv head, FLOAT64 {@code [kv
     * heads, headDim, headDim]}.
     */
    NDArray metric() {
        if (gradients != null) {
            return moments(gradients.keys().transpose(1, 0, 2));
        }
        if (importance() == null) {
            Shape shape = new Shape(geometry.numKvHeads(), -1, geometry.headDim());
            NDArray turned = turnedQueries().reshape(queries.getShape());
            return moments(turned.transpose(1, 0, 2, 3).reshape(shape));
        }
        // What a few keys see is noisy; all of them would see what is after RoPE at least.
        NDArray metric = matrices(importance().seen()).add(matrices(importance().turned())).div(2);
        NDArray identity =
                keys.getManager().eye(geometry.headDim()).toType(DataType.FLOAT64, false);
        NDArray mean =
                metric.mul(identity).sum().div(metric.getShape().get(0) * geometry.headDim());
        return metric.add(identity.mul(mean.mul(LEAST_HEAD)));
    }

    private NDArray matrices(double[][][] matrices) {
        double[] flat =
                Arrays.stream(matrices)
                        .flatMap(Arrays::stream)
                        .flatMapToDouble(Arrays::stream)
                        .toArray();
        int n = geometry.headDim();
        return keys.getManager().create(flat, new Shape(matrices.length, n, n));
    }

    /** E[x x'] of {@code [groups, tokens, n]}, FLOAT64 {@code [groups, n, n]}. */
    static NDArray moments(NDArray x) {
        NDArray wide = x.toType(DataType.FLOAT64, false);
        return wide.transpose(0, 2, 1).matMul(wide).div(x.getShape().get(1));
    }

    /** Mean square of queries after RoPE, over tokens and the queries of a kv head. */
    private double[][] queryEnergy() {
        int perHead = geometry.numHeads() / geometry.numKvHeads();
        NDArray square = turnedQueries().square().mean(new int[] {0});
        NDArray mean =
                square.reshape(geometry.numKvHeads(), perHead, geometry.headDim())
                        .mean(new int[] {1});
        return rows(mean);
    }

    /** The rows of a matrix. */
    static double[][] rows(NDArray matrix) {
        int columns = Math.toIntExact(matrix.getShape().get(1));
        float[] values = matrix.toFloatArray();
        double[][] rows = new double[values.length / columns][columns];
        for (int i = 0; i < values.length; ++i) {
            rows[i / columns][i % columns] = values[i];
        }
        return rows;
    }
}
