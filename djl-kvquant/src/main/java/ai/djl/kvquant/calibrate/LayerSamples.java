/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.util.function.Function;

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
 */
record LayerSamples(
        CacheGeometry geometry,
        NDArray queries,
        NDArray keys,
        NDArray values,
        NDArray cos,
        NDArray sin,
        Gradients gradients) {

    /**
     * Gradients of the loss.
     *
     * @param keys with respect to keys before RoPE, in their shape
     * @param values with respect to values, in their shape
     */
    record Gradients(NDArray keys, NDArray values) {}

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
                null);
    }

    /** These samples with the gradients at them. */
    LayerSamples with(Gradients found) {
        return new LayerSamples(geometry, queries, keys, values, cos, sin, found);
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
        int half = geometry.headDim() / 2;
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

    /** Mean square of queries after RoPE, over tokens and the queries of a kv head. */
    double[][] queryEnergy() {
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
