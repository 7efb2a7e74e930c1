/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;

/**
 * The mean of keys before RoPE: all that RotateKV's order of channels is made of, however keys are
 * rotated and over which channels they are sorted.
 */
record KeyMeanFit() implements KeyFit {

    @Override
    public void write(Calibration.Builder out, int layer, LayerSamples samples) {
        out.put(layer, "keys.mean", samples.keyMean().toFloatArray());
    }
}
