/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.CacheDtype;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.Calibration;

/** Chooses a layer's parameters of one way to store keys. */
interface KeyFit {

    /** Adds the layer's arrays. */
    void write(Calibration.Builder out, int layer, LayerSamples samples);

    /** Whether gradients make a difference. */
    default boolean usesGradients() {
        return false;
    }

    /** The fit of a data type. */
    static KeyFit of(CacheOptions options) {
        CacheDtype dtype = options.dtype();
        return switch (dtype.keyMethod()) {
            case INT -> new PostRopeFit(dtype.keyBits());
            case LATENT -> new BasisFit(dtype.keyBits(), options.layerWideBasis());
            case ROTATEKV -> new RotatedOrderFit();
            case AUTO, FP16, KVQUANT ->
                    throw new IllegalArgumentException(
                            "kv_cache_dtype "
                                    + dtype.name()
                                    + " has nothing to calibrate; name a quantized one.");
        };
    }
}
