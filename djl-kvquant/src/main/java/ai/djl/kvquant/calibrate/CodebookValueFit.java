/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import java.util.Arrays;

/**
 * KVQuant's values: one codebook for the layer, in the range of each token without its outliers.
 *
 * @param bits bits of a code
 * @param apart the smallest elements of a token that are kept apart, and as many of the largest
 */
record CodebookValueFit(int bits, int apart) implements KeyFit {

    @Override
    public boolean weighsErrors() {
        return true;
    }

    @Override
    public void write(Calibration.Builder out, int layer, LayerSamples samples) {
        int channels = samples.geometry().channels();
        float[] values = samples.values().toFloatArray();
        double[] gradients = samples.squaredGradients(LayerSamples.Gradients::values);
        Codebook codebook = new Codebook(values.length);
        for (int first = 0; first < values.length; first += channels) {
            float[] sorted = Arrays.copyOfRange(values, first, first + channels);
            Arrays.sort(sorted);
            float low = sorted[apart];
            float high = sorted[channels - 1 - apart];
            // a token whose elements are all the same has no use for levels
            for (int i = first; high > low && i < first + channels; ++i) {
                if (values[i] >= low && values[i] <= high) {
                    double importance = gradients == null ? 1 : gradients[i];
                    codebook.add(values[i], (high + low) / 2, (high - low) / 2, importance);
                }
            }
        }
        codebook.write(out, layer, "values", bits);
    }
}
