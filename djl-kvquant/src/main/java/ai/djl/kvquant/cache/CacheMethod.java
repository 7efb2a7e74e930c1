/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/** The families of ways to store keys or values. */
public enum CacheMethod {
    /** The compute type, not quantized. */
    AUTO,
    /** Half precision. */
    FP16,
    /** RotateKV: rotated over heads, codes with a scale and zero per token and group. */
    ROTATEKV,
    /** Keys after RoPE in static codes of mixed widths, values rotated with a norm per token. */
    INT,
    /** Keys before RoPE in static codes of mixed widths of a decorrelating basis. */
    LATENT,
    /**
     * KVQuant: levels of a codebook, keys before RoPE in ranges of channels, values in ranges of
     * tokens, outliers apart.
     */
    KVQUANT,
    /** SVDq: keys before RoPE in the principal axes of a layer, widths as prescribed. */
    SVDQ;

    boolean isQuantized() {
        return this != AUTO && this != FP16;
    }

    /** Whether keys can not be stored without a calibration of the model. */
    boolean needsCalibration() {
        return this == INT || this == LATENT || this == KVQUANT || this == SVDQ;
    }

    /** Whether the most recent tokens are kept exactly unless an option says otherwise. */
    boolean keepsWindow() {
        return this == INT || this == LATENT;
    }

    /** Whether keys are stored better with a calibration of the model. */
    boolean usesCalibration() {
        return needsCalibration() || this == ROTATEKV;
    }
}
