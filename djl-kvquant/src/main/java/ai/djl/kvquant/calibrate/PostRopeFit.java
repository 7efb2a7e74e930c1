/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import ai.djl.ndarray.NDArray;
import java.util.ArrayList;
import java.util.List;
import java.util.SortedMap;
import java.util.TreeMap;

/** Keys after RoPE, minus the mean turned to each position, channel by channel. */
final class PostRopeFit implements KeyFit {

    private final double bits;
    private final SortedMap<Integer, KeyCodes.Fits> layers = new TreeMap<>();

    /**
     * Prepares a fit.
     *
     * @param bits bits per channel on average
     */
    PostRopeFit(double bits) {
        this.bits = bits;
    }

    @Override
    public boolean weighsErrors() {
        return true;
    }

    @Override
    public void write(Calibration.Builder out, int layer, LayerSamples samples) {
        double[][] ofTokens = samples.tokenWeights();
        NDArray mean = samples.weightedKeyMean(ofTokens);
        out.put(layer, "keys.mean", mean.toFloatArray());
        NDArray centred = samples.rope(samples.keys().sub(mean));
        layers.put(layer, KeyCodes.fit(byChannel(centred), ofTokens, samples.turnedWeights()));
    }

    @Override
    public void finish(Calibration.Builder out) {
        List<Integer> numbers = new ArrayList<>(layers.keySet());
        List<KeyCodes> all = KeyCodes.choose(new ArrayList<>(layers.values()), bits);
        for (int i = 0; i < all.size(); ++i) {
            KeyCodes codes = all.get(i);
            codes.writeOrdered(out, numbers.get(i));
            float[] noise = new float[codes.order().length];
            for (int place = 0; place < noise.length; ++place) {
                noise[codes.order()[place]] = (float) codes.errors()[place];
            }
            out.put(numbers.get(i), "keys.noise", noise);
        }
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
