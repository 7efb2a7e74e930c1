/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.torch.LinearAlgebra;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.index.NDIndex;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SortedMap;
import java.util.TreeMap;

/**
 * Keys before RoPE in a basis in which their channels are uncorrelated and errors of all matter
 * alike: the Karhunen-Loeve transform under the metric of the queries, or of the loss's gradients.
 * The basis is fitted to the tokens by how much errors of their keys matter.
 */
final class BasisFit implements KeyFit {

    /** Added to the metric and to the covariance, relative to their mean eigenvalue. */
    private static final double METRIC_FLOOR = 1e-2;

    private static final double COVARIANCE_FLOOR = 1e-4;

    private final double bits;
    private final boolean layerWide;
    private final int band;
    private final SortedMap<Integer, Fitted> layers = new TreeMap<>();

    /**
     * Prepares a fit.
     *
     * @param bits bits per channel on average
     * @param layerWide whether one basis covers all kv heads of a layer
     * @param band channels of a head that are mixed with each other; 0: all
     */
    BasisFit(double bits, boolean layerWide, int band) {
        this.bits = bits;
        this.layerWide = layerWide;
        this.band = band;
    }

    /**
     * A layer whose latents have no widths yet.
     *
     * @param forward the basis, FLOAT32 [groups, n latents, n channels]
     * @param inverse its inverse, FLOAT32 [groups, n latents, n channels]: transposed
     * @param codes of the latents
     */
    private record Fitted(float[] forward, float[] inverse, KeyCodes.Fits codes) {}

    @Override
    public boolean weighsErrors() {
        return true;
    }

    @Override
    public void write(Calibration.Builder out, int layer, LayerSamples samples) {
        double[][] ofTokens = samples.tokenWeights();
        NDArray mean = samples.weightedKeyMean(ofTokens);
        out.put(layer, "keys.mean", mean.toFloatArray());
        NDArray centred = samples.keys().sub(mean);
        double[][] ofCodes = codeWeights(ofTokens);
        try (LinearAlgebra algebra = new LinearAlgebra(centred.getManager())) {
            NDArray covariance =
                    blocks(floor(covariance(samples, centred, ofCodes), COVARIANCE_FLOOR));
            NDArray whole = metric(samples);
            double scale = meanEigenvalue(whole);
            NDArray metric = blocks(floor(whole.div(scale), METRIC_FLOOR));
            NDList spectrum = algebra.eigh(metric);
            NDArray root = power(spectrum, 0.5);
            NDArray inverseRoot = power(spectrum, -0.5);
            NDList principal = algebra.eigh(root.matMul(covariance).matMul(root));
            // Eigenvalues ascend, places descend.
            NDArray axes = principal.get(1).flip(2);
            NDArray forward = whole(axes.transpose(0, 2, 1).matMul(root), samples);
            NDArray inverse = whole(inverseRoot.matMul(axes), samples).transpose(0, 2, 1);
            layers.put(
                    layer,
                    fitted(samples, groups(samples, centred), ofCodes, scale, forward, inverse));
        }
    }

    private NDArray blocks(NDArray heads) {
        return band == 0 ? heads : Bands.split(heads, band);
    }

    private NDArray whole(NDArray blocks, LayerSamples samples) {
        return band == 0 ? blocks : Bands.join(blocks, samples.geometry().headDim());
    }

    /** Of all groups together; layers differ in it, and share their bits by it. */
    private static double meanEigenvalue(NDArray metric) {
        long n = metric.getShape().get(2);
        NDArray identity = metric.getManager().eye((int) n).toType(DataType.FLOAT64, false);
        double mean = metric.mul(identity).sum().getDouble() / (metric.getShape().get(0) * n);
        if (!(mean > 0)) {
            throw new IllegalStateException(
                    "Errors of a layer's keys seem not to matter (mean eigenvalue "
                            + mean
                            + "); calibrate without gradients, or on another text.");
        }
        return mean;
    }

    /** Fits codes; forward and inverse [groups, latents, channels]. */
    private Fitted fitted(
            LayerSamples samples,
            NDArray centred,
            double[][] ofCodes,
            double scale,
            NDArray forward,
            NDArray inverse) {
        int heads = samples.geometry().numKvHeads();
        int headDim = samples.geometry().headDim();
        NDArray forward32 = forward.toType(DataType.FLOAT32, false);
        NDArray latents = centred.matMul(forward32.transpose(0, 2, 1));
        double[][] weights = new double[heads][headDim];
        for (double[] row : weights) {
            Arrays.fill(row, scale);
        }
        KeyCodes.Fits codes = KeyCodes.fit(channels(latents, heads, headDim), ofCodes, weights);
        return new Fitted(
                forward32.toFloatArray(),
                inverse.toType(DataType.FLOAT32, false).toFloatArray(),
                codes);
    }

    @Override
    public void finish(Calibration.Builder out) {
        List<Integer> numbers = new ArrayList<>(layers.keySet());
        List<KeyCodes> all =
                KeyCodes.choose(layers.values().stream().map(Fitted::codes).toList(), bits);
        for (int i = 0; i < all.size(); ++i) {
            write(out, numbers.get(i), layers.get(numbers.get(i)), all.get(i));
        }
    }

    /** Writes a layer, its basis in the order of the places. */
    private void write(Calibration.Builder out, int layer, Fitted fitted, KeyCodes codes) {
        codes.write(out, layer);
        int channels = codes.order().length;
        int n = fitted.forward().length / channels;
        int headDim = fitted.codes().weights()[0].length;
        int[] latentAt = latentAt(codes.order(), channels / headDim, headDim);
        out.put(layer, "keys.basis", rows(fitted.forward(), latentAt, n), channels, n);
        float[] inverse = transposed(rows(fitted.inverse(), latentAt, n), n);
        out.put(layer, "keys.inverse", inverse, channels, n);
        out.put(layer, "keys.noise", noise(inverse, codes.errors(), n, headDim));
    }

    /**
     * The latent, counted over the layer, at each place; one basis deals its latents to the heads
     * in turn.
     */
    private int[] latentAt(int[] order, int heads, int headDim) {
        int[] latents = new int[order.length];
        for (int place = 0; place < order.length; ++place) {
            int head = order[place] / headDim;
            int c = order[place] % headDim;
            latents[place] = layerWide ? c * heads + head : order[place];
        }
        return latents;
    }

    private float[][][] channels(NDArray latents, int heads, int headDim) {
        int tokens = Math.toIntExact(latents.getShape().get(1));
        float[] values = latents.transpose(0, 2, 1).toFloatArray();
        float[][][] channels = new float[heads][headDim][tokens];
        for (int h = 0; h < heads; ++h) {
            for (int c = 0; c < headDim; ++c) {
                int latent = layerWide ? c * heads + h : h * headDim + c;
                System.arraycopy(values, latent * tokens, channels[h][c], 0, tokens);
            }
        }
        return channels;
    }

    /**
     * Variance of errors of each channel after RoPE, over all positions: that of its pair.
     *
     * @param inverse [groups, n channels, n places]
     * @param errors mean squared error of each place
     */
    private static float[] noise(float[] inverse, double[] errors, int n, int headDim) {
        double[] variance = new double[errors.length];
        for (int i = 0; i < inverse.length; ++i) {
            int channel = i / n;
            variance[channel] += inverse[i] * inverse[i] * errors[channel / n * n + i % n];
        }
        float[] noise = new float[errors.length];
        int half = headDim / 2;
        for (int c = 0; c < noise.length; ++c) {
            int partner = c % headDim < half ? c + half : c - half;
            noise[c] = (float) ((variance[c] + variance[partner]) / 2);
        }
        return noise;
    }

    /** Rows of n elements, picked. */
    private static float[] rows(float[] matrix, int[] picked, int n) {
        float[] rows = new float[matrix.length];
        for (int i = 0; i < picked.length; ++i) {
            System.arraycopy(matrix, picked[i] * n, rows, i * n, n);
        }
        return rows;
    }

    /** Every [n, n] matrix transposed. */
    private static float[] transposed(float[] matrices, int n) {
        float[] transposed = new float[matrices.length];
        for (int i = 0; i < matrices.length; ++i) {
            int row = i / n % n;
            transposed[i / (n * n) * n * n + i % n * n + row] = matrices[i];
        }
        return transposed;
    }

    /** [tokens, heads, headDim] as [groups, tokens, n]. */
    private NDArray groups(LayerSamples samples, NDArray keys) {
        return layerWide
                ? keys.reshape(1, -1, samples.geometry().channels())
                : keys.transpose(1, 0, 2);
    }

    /** Weights of tokens for the codes of each head; one basis has codes of all heads in each. */
    private double[][] codeWeights(double[][] ofTokens) {
        if (!layerWide) {
            return ofTokens;
        }
        double[][] weights = new double[ofTokens.length][];
        Arrays.fill(weights, mean(ofTokens));
        return weights;
    }

    private static double[] mean(double[][] rows) {
        double[] mean = new double[rows[0].length];
        for (double[] row : rows) {
            for (int i = 0; i < mean.length; ++i) {
                mean[i] += row[i] / rows.length;
            }
        }
        return mean;
    }

    /** Weighted second moments of centred keys, FLOAT64 [groups, n, n]. */
    private NDArray covariance(LayerSamples samples, NDArray centred, double[][] ofCodes) {
        NDArray weights = samples.column(ofCodes);
        NDArray wide = groups(samples, centred.toType(DataType.FLOAT64, false));
        NDArray weighted = groups(samples, centred.toType(DataType.FLOAT64, false).mul(weights));
        return wide.transpose(0, 2, 1)
                .matMul(weighted)
                .div(weights.mean().mul(centred.getShape().get(0)));
    }

    /** How much errors of keys matter, FLOAT64 [groups, n, n]. */
    private NDArray metric(LayerSamples samples) {
        if (!layerWide) {
            return samples.metric();
        }
        return samples.gradients() == null
                ? blockDiagonal(samples.metric())
                : LayerSamples.moments(groups(samples, samples.gradients().keys()));
    }

    private static NDArray blockDiagonal(NDArray blocks) {
        int count = Math.toIntExact(blocks.getShape().get(0));
        int n = Math.toIntExact(blocks.getShape().get(1));
        Shape shape = new Shape(1, (long) count * n, (long) count * n);
        NDArray all = blocks.getManager().zeros(shape, DataType.FLOAT64);
        for (int i = 0; i < count; ++i) {
            String range = i * n + ":" + (i + 1) * n;
            all.set(new NDIndex("0, " + range + ", " + range), blocks.get(i));
        }
        return all;
    }

    private static NDArray floor(NDArray matrices, double fraction) {
        long n = matrices.getShape().get(2);
        NDArray identity = matrices.getManager().eye((int) n).toType(DataType.FLOAT64, false);
        NDArray trace = matrices.mul(identity).sum(new int[] {1, 2}, true);
        return matrices.add(identity.mul(trace.mul(fraction / n)));
    }

    /** A power of the matrices with these eigenvalues and eigenvectors. */
    private static NDArray power(NDList spectrum, double exponent) {
        NDArray vectors = spectrum.get(1);
        NDArray scaled = vectors.mul(spectrum.get(0).pow(exponent).expandDims(1));
        return scaled.matMul(vectors.transpose(0, 2, 1));
    }
}
