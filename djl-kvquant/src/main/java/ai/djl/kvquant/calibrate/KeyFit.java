/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.CacheDtype;
import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.kvquant.cache.CacheMethod;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.cache.SvdqSchedule;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;

/** Chooses a layer's parameters of one way to store keys, or values. */
interface KeyFit {

    /** Adds a layer's arrays, or keeps what {@link #finish} needs for them. */
    void write(Calibration.Builder out, int layer, LayerSamples samples);

    /** Adds the arrays that depend on all layers. */
    default void finish(Calibration.Builder out) {}

    /** Whether it makes a difference which errors matter, as gradients or importance tell. */
    default boolean weighsErrors() {
        return false;
    }

    /** The fit of a data type. */
    static KeyFit of(CacheOptions options, CacheGeometry geometry) {
        List<KeyFit> fits =
                Stream.of(keys(options, geometry), values(options, geometry))
                        .flatMap(Optional::stream)
                        .toList();
        if (fits.isEmpty()) {
            throw new IllegalArgumentException(
                    "kv_cache_dtype "
                            + options.dtype().name()
                            + " has nothing to calibrate; name a quantized one.");
        }
        return new All(fits);
    }

    private static Optional<KeyFit> keys(CacheOptions options, CacheGeometry geometry) {
        CacheDtype dtype = options.dtype();
        return switch (dtype.keyMethod()) {
            case INT -> Optional.of(new PostRopeFit(dtype.keyBits()));
            case LATENT ->
                    Optional.of(
                            new BasisFit(
                                    dtype.keyBits(),
                                    options.layerWideBasis(),
                                    options.basisBand()));
            case SVDQ -> Optional.of(new SvdqFit(SvdqSchedule.of(dtype.keyBits())));
            case ROTATEKV -> Optional.of(new KeyMeanFit());
            case KVQUANT -> {
                // As many elements lie outside of their ranges, on average, as can be kept.
                double outside = (double) options.keyOutliers(geometry) / geometry.channels();
                yield Optional.of(new CodebookKeyFit((int) dtype.keyBits(), outside));
            }
            case AUTO, FP16 -> Optional.empty();
        };
    }

    /** Of values, only KVQuant learns anything offline. */
    private static Optional<KeyFit> values(CacheOptions options, CacheGeometry geometry) {
        CacheDtype dtype = options.dtype();
        if (dtype.valueMethod() != CacheMethod.KVQUANT) {
            return Optional.empty();
        }
        int apart = options.valueOutliers(geometry) / 2;
        return Optional.of(new CodebookValueFit((int) dtype.valueBits(), apart));
    }

    /**
     * One after the other.
     *
     * @param fits of keys, of values, or of both
     */
    record All(List<KeyFit> fits) implements KeyFit {

        @Override
        public void write(Calibration.Builder out, int layer, LayerSamples samples) {
            fits.forEach(fit -> fit.write(out, layer, samples));
        }

        @Override
        public void finish(Calibration.Builder out) {
            fits.forEach(fit -> fit.finish(out));
        }

        @Override
        public boolean weighsErrors() {
            return fits.stream().anyMatch(KeyFit::weighsErrors);
        }
    }
}
