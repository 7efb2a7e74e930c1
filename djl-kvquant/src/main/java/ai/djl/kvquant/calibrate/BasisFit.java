/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.torch.LinearAlgebra;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.index.NDIndex;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.util.Arrays;

/**
 * Keys before RoPE in a basis in which their channels are uncorrelated and errors of all matter
 * alike: the Karhunen-Loeve transform under the metric of the queries, or of the loss's gradients.
 *
 * @param bits bits per channel on average
 * @param layerWide whether one basis covers all kv heads of a layer
 * @param band channels of a head that are mixed with each other; 0: all
 */
record BasisFit(double bits, boolean layerWide, int band) implements KeyFit {

    /** Added to the metric and to the covariance, relative to their mean eigenvalue. */
    private static final double METRIC_FLOOR = 1e-2;

    private static final double COVARIANCE_FLOOR = 1e-4;

    @Override
    public boolean usesGradients() {
        return true;
    }

    @Override
    public void write(Calibration.Builder out, int layer, LayerSamples samples) {
        NDArray mean = samples.keyMean();
        out.put(layer, "keys.mean", mean.toFloatArray());
        NDArray centred = groups(samples, samples.keys().sub(mean));
        NDManager scope = centred.getManager();
        try (LinearAlgebra algebra = new LinearAlgebra(scope)) {
            NDArray covariance = blocks(floor(gram(centred), COVARIANCE_FLOOR));
            NDArray metric = blocks(floor(metric(samples), METRIC_FLOOR));
            NDList spectrum = algebra.eigh(metric);
            NDArray root = power(spectrum, 0.5);
            NDArray inverseRoot = power(spectrum, -0.5);
            NDList principal = algebra.eigh(root.matMul(covariance).matMul(root));
            // Eigenvalues ascend, places descend.
            NDArray axes = principal.get(1).flip(2);
            write(
                    out,
                    layer,
                    samples,
                    centred,
                    whole(axes.transpose(0, 2, 1).matMul(root), samples),
                    whole(inverseRoot.matMul(axes), samples));
        }
    }

    private NDArray blocks(NDArray heads) {
        return band == 0 ? heads : Bands.split(heads, band);
    }

    private NDArray whole(NDArray blocks, LayerSamples samples) {
        return band == 0 ? blocks : Bands.join(blocks, samples.geometry().headDim());
    }

    /** Chooses codes and writes everything; forward [groups, places, channels]. */
    private void write(
            Calibration.Builder out,
            int layer,
            LayerSamples samples,
            NDArray centred,
            NDArray forward,
            NDArray inverse) {
        int heads = samples.geometry().numKvHeads();
        int headDim = samples.geometry().headDim();
        NDArray forward32 = forward.toType(DataType.FLOAT32, false);
        NDArray latents = centred.matMul(forward32.transpose(0, 2, 1));
        float[][][] channels = channels(latents, heads, headDim);
        double[][] weights = new double[heads][headDim];
        for (double[] row : weights) {
            Arrays.fill(row, 1);
        }
        KeyCodes codes = KeyCodes.choose(channels, weights, bits);
        codes.write(out, layer);
        int n = Math.toIntExact(forward.getShape().get(1));
        int[] latentAt = latentAt(codes.order(), heads, headDim);
        out.put(
                layer,
                "keys.basis",
                rows(forward32.toFloatArray(), latentAt, n),
                heads * headDim,
                n);
        float[] columns = inverse.toType(DataType.FLOAT32, false).transpose(0, 2, 1).toFloatArray();
        float[] inverseRows = transposed(rows(columns, latentAt, n), n);
        out.put(layer, "keys.inverse", inverseRows, heads * headDim, n);
        out.put(layer, "keys.noise", noise(inverseRows, codes.errors(), n, headDim));
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

    /** E[x x'] of [groups, tokens, n], in double precision. */
    private static NDArray gram(NDArray x) {
        NDArray wide = x.toType(DataType.FLOAT64, false);
        return wide.transpose(0, 2, 1).matMul(wide).div(x.getShape().get(1));
    }

    /** How much errors of keys matter, [groups, n, n]. */
    private NDArray metric(LayerSamples samples) {
        return samples.gradients() == null
                ? queryMetric(samples)
                : gradientMetric(samples.gradients().keys(), samples);
    }

    /**
     * Second moments of the loss's gradients, scaled to a mean eigenvalue of 1: to second order,
     * what errors of keys add to the divergence from the exact model.
     */
    private NDArray gradientMetric(NDArray gradients, LayerSamples samples) {
        NDArray moments = gram(groups(samples, gradients));
        double trace = gradients.toType(DataType.FLOAT64, false).square().sum().getDouble();
        double mean = trace / gradients.size();
        if (!(mean > 0)) {
            throw new IllegalStateException(
                    "All gradients of a layer's keys are 0 or not numbers (mean square "
                            + mean
                            + "); calibrate without gradients.");
        }
        return moments.div(mean);
    }

    /**
     * Second moments of the queries of each kv head. A key meets queries at all distances, as if it
     * stood at position 0 and they at theirs.
     */
    private NDArray queryMetric(LayerSamples samples) {
        int heads = samples.geometry().numKvHeads();
        int headDim = samples.geometry().headDim();
        NDArray turned = samples.turnedQueries().reshape(samples.queries().getShape());
        NDArray perHead = gram(turned.transpose(1, 0, 2, 3).reshape(new Shape(heads, -1, headDim)));
        if (!layerWide) {
            return perHead;
        }
        NDArray all =
                perHead.getManager()
                        .zeros(new Shape(1, heads * headDim, heads * headDim), DataType.FLOAT64);
        for (int h = 0; h < heads; ++h) {
            String range = h * headDim + ":" + (h + 1) * headDim;
            all.set(new NDIndex("0, " + range + ", " + range), perHead.get(h));
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
