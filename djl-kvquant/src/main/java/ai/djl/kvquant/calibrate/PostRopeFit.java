/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import ai.djl.ndarray.NDArray;

/**
 * Keys after RoPE, minus the mean turned to each position, channel by channel.
 *
 * @param bits bits per channel on average
 */
record PostRopeFit(double bits) implements KeyFit {

    @Override
    public void write(Calibration.Builder out, int layer, LayerSamples samples) {
        NDArray mean = samples.keyMean();
        out.put(layer, "keys.mean", mean.toFloatArray());
        NDArray centred = samples.rope(samples.keys().sub(mean));
        KeyCodes codes = KeyCodes.choose(byChannel(centred), samples.queryEnergy(), bits);
        codes.writeOrdered(out, layer);
        float[] noise = new float[codes.order().length];
        for (int place = 0; place < noise.length; ++place) {
            noise[codes.order()[place]] = (float) codes.errors()[place];
        }
        out.put(layer, "keys.noise", noise);
    }

    /** The tokens of each channel of {@code [tokens, heads, headDim]}. */
    static float[][][] byChannel(NDArray keys) {
        int tokens = Math.toIntExact(keys.getShape().get(0));
        int heads = Math.toIntExact(keys.getShape().get(1));
        int headDim = Math.toIntExact(keys.getShape().get(2));
        float[] values = keys.toFloatArray();
        float[][][] samples = new float[heads][headDim][tokens];
        for (int i = 0; i < values.length; ++i) {
            int channel = i % (heads * headDim);
            samples[channel / headDim][channel % headDim][i / (heads * headDim)] = values[i];
        }
        return samples;
    }
}
