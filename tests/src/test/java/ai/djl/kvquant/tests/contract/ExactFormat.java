/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * An exact page as layout.h documents it: a header of 256 bytes that begins with the tokens of the
 * 16 slots, then keys and values as fp16 [kvHeads, headDim, 16], natural basis, before RoPE.
 */
final class ExactFormat {

    static final int SLOTS = 16;
    static final int HEADER_BYTES = 256;

    private ExactFormat() {}

    static int bytes(Layer layer) {
        return HEADER_BYTES + 2 * layer.channels() * SLOTS * 2;
    }

    static double[] keys(Layer layer, ByteBuffer page, int slot) {
        return read(layer, page, HEADER_BYTES, slot);
    }

    static double[] values(Layer layer, ByteBuffer page, int slot) {
        return read(layer, page, HEADER_BYTES + layer.channels() * SLOTS * 2, slot);
    }

    private static double[] read(Layer layer, ByteBuffer page, int begin, int slot) {
        double[] x = new double[layer.channels()];
        for (int c = 0; c < x.length; ++c) {
            x[c] = Half.read(page, begin + (c * SLOTS + slot) * 2L);
        }
        return x;
    }

    /** The sinks of a sequence of the given length: where (16 column + slot) each token is kept. */
    static Map<Integer, Integer> sinks(CacheState state, int b, int length) {
        Map<Integer, Integer> sinks = new LinkedHashMap<>();
        for (int column = 0; column < state.layer.sinkPages(); ++column) {
            ByteBuffer page = state.exactPage(b, column);
            for (int slot = 0; slot < SLOTS; ++slot) {
                int token = page.getInt(4 * slot);
                if (token >= 0 && token < length) {
                    sinks.put(token, SLOTS * column + slot);
                }
            }
        }
        return sinks;
    }
}
