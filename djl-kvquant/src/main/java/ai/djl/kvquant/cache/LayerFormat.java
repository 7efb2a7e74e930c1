/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.nio.ByteBuffer;

/**
 * How one layer stores its cache: the fields of LayerParams in the operators' layout.h.
 *
 * @param keys how keys are stored
 * @param values how values are stored
 * @param window recent tokens that are read exactly
 * @param sinkPolicy which tokens are sinks
 * @param maxSinks sinks at most
 * @param sparseTokens stored tokens that a decoding step chooses; 0: it reads all
 */
record LayerFormat(
        SideFormat keys,
        SideFormat values,
        int window,
        SinkPolicy sinkPolicy,
        int maxSinks,
        int sparseTokens) {

    private static final int MAGIC = 0x3151564b;
    private static final int HEADER_BYTES = 48;
    private static final int SIZE_POSITION = 4;
    private static final double EXACT_BITS = 16;
    private static final int FLOAT_BITS = 32;

    static LayerFormat of(CacheGeometry geometry, CacheOptions options, int layer) {
        return of(geometry, options, layer, FLOAT_BITS);
    }

    /** With so many bits per element where the data type is auto. */
    static LayerFormat of(CacheGeometry geometry, CacheOptions options, int layer, int autoBits) {
        if (options.exact().skipLayers(geometry.numLayers()).contains(layer)) {
            PlainFormat half = new PlainFormat(16);
            return new LayerFormat(half, half, 0, SinkPolicy.NONE, 0, 0);
        }
        return new LayerFormat(
                keys(geometry, options, layer, autoBits),
                values(geometry, options, layer, autoBits),
                // A window beyond the longest sequence would only take memory.
                Math.min(options.window(), geometry.maxTokens()),
                options.exact().sinkPolicy(),
                options.exact().maxSinks(),
                options.sparseTokens());
    }

    private static SideFormat keys(
            CacheGeometry geometry, CacheOptions options, int layer, int autoBits) {
        CacheDtype.Side side = options.dtype().keys();
        return switch (side.method()) {
            case AUTO -> new PlainFormat(autoBits);
            case FP16 -> new PlainFormat((int) side.bits());
            case ROTATEKV -> {
                if (options.rotation().keys() != KeyRotation.NONE) {
                    requirePowerOfTwo(geometry, options);
                }
                yield RotatedFormat.keys((int) side.bits(), geometry, options, layer);
            }
            case INT, LATENT, SVDQ -> {
                requireRuns(geometry, options);
                boolean preRope = side.method() != CacheMethod.INT;
                yield StaticFormat.of(options.calibration(), layer, geometry, preRope);
            }
            case KVQUANT -> CodebookFormat.keys((int) side.bits(), geometry, options, layer);
        };
    }

    private static SideFormat values(
            CacheGeometry geometry, CacheOptions options, int layer, int autoBits) {
        CacheDtype.Side side = options.dtype().values();
        return switch (side.method()) {
            case AUTO -> new PlainFormat(autoBits);
            case FP16 -> new PlainFormat((int) side.bits());
            case ROTATEKV -> {
                if (options.rotation().values()) {
                    requirePowerOfTwo(geometry, options);
                }
                yield RotatedFormat.values((int) side.bits(), geometry, options);
            }
            case INT, LATENT, SVDQ -> {
                requirePowerOfTwo(geometry, options);
                yield new NormFormat((int) Math.ceil(side.bits()), geometry.headDim());
            }
            case KVQUANT -> CodebookFormat.values((int) side.bits(), geometry, options, layer);
        };
    }

    private static void requirePowerOfTwo(CacheGeometry geometry, CacheOptions options) {
        if (Integer.bitCount(geometry.headDim()) != 1) {
            throw unsuitable(geometry, options, "a power of two (64 and 128 have fast kernels)");
        }
    }

    private static void requireRuns(CacheGeometry geometry, CacheOptions options) {
        if (geometry.headDim() % StaticFormat.RUNS != 0) {
            throw unsuitable(geometry, options, "a multiple of " + StaticFormat.RUNS);
        }
    }

    private static IllegalArgumentException unsuitable(
            CacheGeometry geometry, CacheOptions options, String allowed) {
        return new IllegalArgumentException(
                "kv_cache_dtype "
                        + options.dtype().name()
                        + " needs a head_dim that is "
                        + allowed
                        + ", but the model's is "
                        + geometry.headDim()
                        + ". Set kv_cache_dtype=fp16 or auto.");
    }

    /** The same with keys stored in other static codes. */
    LayerFormat withKeys(StaticFormat other) {
        return new LayerFormat(other, values, window, sinkPolicy, maxSinks, sparseTokens);
    }

    /** Bits per element of keys, with all that is stored beside codes. */
    double keyBits() {
        double landmarks = (double) KeySparsity.LANDMARK_BITS / KvCache.PAGE_TOKENS;
        return keys.effectiveBits() + (sparseTokens > 0 ? landmarks : 0);
    }

    boolean hasExactPages() {
        return window > 0 || maxSinks > 0;
    }

    /**
     * Bits per element of a sequence: pages hold all but recent tokens, exact pages those and as
     * many sinks as there may be.
     */
    double storedBits(SideFormat side, int tokens, int recent) {
        if (!keys.isQuantized()) {
            return side.effectiveBits();
        }
        int window = Math.min(recent, tokens);
        int exact = window + Math.min(maxSinks, tokens);
        return (side.effectiveBits() * (tokens - window) + EXACT_BITS * exact) / tokens;
    }

    int sinkPages() {
        return (maxSinks + KvCache.EXACT_TOKENS - 1) / KvCache.EXACT_TOKENS;
    }

    ByteBuffer pack(CacheGeometry geometry) {
        ParamsWriter out = new ParamsWriter(HEADER_BYTES + 2 * SideFormat.BYTES);
        out.putInt(MAGIC).putInt(0);
        out.putInt(geometry.numHeads()).putInt(geometry.numKvHeads()).putInt(geometry.headDim());
        out.putInt(window).putInt(sinkPolicy.ordinal()).putInt(maxSinks);
        out.putInt(keys.isPreRope() ? 1 : 0).putFloat((float) geometry.scoreScale());
        out.putInt(sparseTokens).putInt(0);
        keys.write(out);
        values.write(out);
        return out.finish(SIZE_POSITION);
    }
}
