/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * How one layer stores its cache: the fields of LayerParams in the operators' layout.h.
 *
 * @param keys how keys are stored
 * @param values how values are stored
 * @param window recent tokens that are read exactly
 * @param sinkPolicy which tokens are sinks
 * @param maxSinks sinks at most
 */
record LayerFormat(
        SideFormat keys, SideFormat values, int window, SinkPolicy sinkPolicy, int maxSinks) {

    private static final int MAGIC = 0x3151564b;
    private static final int HEADER_BYTES = 48;

    static LayerFormat of(CacheGeometry geometry, CacheOptions options, boolean skipped) {
        if (skipped) {
            return new LayerFormat(
                    SideFormat.plain(16), SideFormat.plain(16), 0, SinkPolicy.NONE, 0);
        }
        return new LayerFormat(
                side(options.dtype().keys(), geometry, true, options),
                side(options.dtype().values(), geometry, false, options),
                // A window beyond the longest sequence would only take memory.
                Math.min(options.window(), geometry.maxTokens()),
                options.sinkPolicy(),
                options.maxSinks());
    }

    private static SideFormat side(
            CacheDtype.Side side, CacheGeometry geometry, boolean keys, CacheOptions options) {
        if (side.method() != CacheMethod.ROTATEKV) {
            return SideFormat.plain(side.bits());
        }
        if (Integer.bitCount(geometry.headDim()) != 1) {
            throw new IllegalArgumentException(
                    "kv_cache_dtype "
                            + options.dtype().name()
                            + " needs a head_dim that is a power of two (64 and 128 have fast"
                            + " kernels), but the model's is "
                            + geometry.headDim()
                            + ". Set kv_cache_dtype=fp16 or auto.");
        }
        return SideFormat.rotated(side.bits(), geometry, keys, options);
    }

    boolean hasExactPages() {
        return window > 0 || maxSinks > 0;
    }

    int sinkPages() {
        return (maxSinks + KvCache.EXACT_TOKENS - 1) / KvCache.EXACT_TOKENS;
    }

    ByteBuffer pack(CacheGeometry geometry) {
        ByteBuffer out =
                ByteBuffer.allocateDirect(HEADER_BYTES + 2 * SideFormat.BYTES)
                        .order(ByteOrder.LITTLE_ENDIAN);
        out.putInt(MAGIC).putInt(out.capacity());
        out.putInt(geometry.numHeads()).putInt(geometry.numKvHeads()).putInt(geometry.headDim());
        out.putInt(window).putInt(sinkPolicy.ordinal()).putInt(maxSinks);
        out.putInt(keys.isPlain() ? 0 : 1).putFloat((float) geometry.scoreScale());
        out.putInt(0).putInt(0);
        keys.write(out);
        values.write(out);
        return out.flip();
    }
}
