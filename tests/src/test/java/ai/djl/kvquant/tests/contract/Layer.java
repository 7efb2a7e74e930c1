/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * A layer's cache parameters: the fields of LayerParams in layout.h.
 *
 * @param kvHeads key and value heads
 * @param perHead query heads per kv head
 * @param headDim channels of a head
 * @param window recent tokens that are read exactly
 * @param sinks which tokens are sinks
 * @param maxSinks sinks at most
 * @param preRope whether keys are stored before RoPE
 * @param scale factor of q . k
 * @param keys how keys are stored
 * @param values how values are stored
 */
record Layer(
        int kvHeads,
        int perHead,
        int headDim,
        int window,
        Sinks sinks,
        int maxSinks,
        boolean preRope,
        float scale,
        Side keys,
        Side values) {

    static final int MAGIC = 0x3151564b;
    static final int BYTES = 48 + 2 * Side.HEADER_BYTES;

    /** Sink policies, numbered as layout.h does. */
    enum Sinks {
        NONE,
        FIRST,
        MASSIVE
    }

    Layer withKeys(Side other) {
        return new Layer(
                kvHeads, perHead, headDim, window, sinks, maxSinks, preRope, scale, other, values);
    }

    Layer withValues(Side other) {
        return new Layer(
                kvHeads, perHead, headDim, window, sinks, maxSinks, preRope, scale, keys, other);
    }

    int heads() {
        return kvHeads * perHead;
    }

    int channels() {
        return kvHeads * headDim;
    }

    /** Columns of the fused projections. */
    int columns() {
        return (heads() + 2 * kvHeads) * headDim;
    }

    boolean hasExactPages() {
        return window > 0 || maxSinks > 0;
    }

    int sinkPages() {
        return (maxSinks + 15) / 16;
    }

    /** The fewest ring pages that hold a window: it may begin and end within a page. */
    int smallestRing() {
        return window == 0 ? 0 : (window + 15) / 16 + 1;
    }

    /** The packed parameters, direct and little endian. */
    ByteBuffer pack() {
        Tables tables = new Tables(BYTES);
        ByteBuffer header = ByteBuffer.allocate(BYTES).order(ByteOrder.LITTLE_ENDIAN);
        header.putInt(MAGIC).putInt(0);
        header.putInt(heads()).putInt(kvHeads).putInt(headDim).putInt(window);
        header.putInt(sinks.ordinal()).putInt(maxSinks).putInt(preRope ? 1 : 0).putFloat(scale);
        header.putInt(0).putInt(0);
        keys.write(header, tables);
        values.write(header, tables);
        header.putInt(4, tables.end());
        ByteBuffer out = ByteBuffer.allocateDirect(tables.end()).order(ByteOrder.LITTLE_ENDIAN);
        out.put(header.flip());
        tables.write(out);
        return out.flip();
    }
}
