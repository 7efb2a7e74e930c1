/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * KVQuant's keys: before RoPE, a range for each channel beyond which elements are outliers, and one
 * codebook for the layer.
 *
 * @param bits bits of a code
 * @param outliers the share of elements beyond the ranges, half of it on each side; 0: the ranges
 *     hold all
 */
record CodebookKeyFit(int bits, double outliers) implements KeyFit {

    /** A channel that does not vary has a range yet, relative to the widest one. */
    private static final float NARROWEST = 1e-6f;

    @Override
    public boolean weighsErrors() {
        return true;
    }

    @Override
    public void write(Calibration.Builder out, int layer, LayerSamples samples) {
        int channels = samples.geometry().channels();
        float[] keys = samples.keys().toFloatArray();
        float[] steps = steps(keys, channels);
        out.put(layer, "keys.steps", steps, channels, 2);
        double[] ofChannels = flat(samples.turnedWeights());
        double[][] ofTokens = samples.tokenWeights();
        int headDim = samples.geometry().headDim();
        double[] gradients = samples.squaredGradients(LayerSamples.Gradients::keys);
        Codebook codebook = new Codebook(keys.length);
        for (int i = 0; i < keys.length; ++i) {
            int c = i % channels;
            float start = steps[2 * c];
            float step = steps[2 * c + 1];
            if (outliers == 0 || Math.abs(keys[i] - start) <= step) {
                double forward = ofChannels[c] * ofTokens[c / headDim][i / channels];
                double importance = gradients == null ? forward : gradients[i];
                codebook.add(keys[i], start, step, importance);
            }
        }
        codebook.write(out, layer, "keys", bits);
    }

    /** Start and step of each channel of {@code [tokens, channels]}. */
    private float[] steps(float[] keys, int channels) {
        int tokens = keys.length / channels;
        float[] steps = new float[2 * channels];
        IntStream.range(0, channels)
                .parallel()
                .forEach(
                        c -> {
                            float[] sorted = new float[tokens];
                            for (int t = 0; t < tokens; ++t) {
                                sorted[t] = keys[t * channels + c];
                            }
                            Arrays.sort(sorted);
                            double low = percentile(sorted, outliers / 2);
                            double high = percentile(sorted, 1 - outliers / 2);
                            steps[2 * c] = (float) ((high + low) / 2);
                            steps[2 * c + 1] = (float) ((high - low) / 2);
                        });
        float widest = 0;
        for (int c = 0; c < channels; ++c) {
            widest = Math.max(widest, steps[2 * c + 1]);
        }
        float narrowest = widest > 0 ? NARROWEST * widest : 1;
        for (int c = 0; c < channels; ++c) {
            steps[2 * c + 1] = Math.max(steps[2 * c + 1], narrowest);
        }
        return steps;
    }

    /** The value below which so large a share of ascending values lies, between two if need be. */
    static double percentile(float[] sorted, double share) {
        double rank = share * (sorted.length - 1);
        int below = (int) Math.min(Math.floor(rank), sorted.length - 1.0);
        int above = Math.min(below + 1, sorted.length - 1);
        return sorted[below] + (rank - below) * ((double) sorted[above] - sorted[below]);
    }

    private static double[] flat(double[][] rows) {
        return Arrays.stream(rows).flatMapToDouble(Arrays::stream).toArray();
    }
}
