/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.nio.ByteBuffer;

/**
 * One side (keys or values) of a layer's packed parameters; the fields of SideParams in the
 * operators' layout.h.
 *
 * @param format 0: fp32, 1: fp16, 2: codes with a scale and zero per token and group
 * @param bits bits of a stored element
 * @param rotationHeads kv heads rotated together; 0: natural basis
 * @param groupSize channels that share a scale and zero
 * @param clip factor on a group's minimum and maximum
 * @param floatZero whether zeros are not rounded to integers
 */
record SideFormat(
        int format, int bits, int rotationHeads, int groupSize, float clip, boolean floatZero) {

    static final int BYTES = 32;
    private static final int MAX_ROTATION_HEADS = 4;
    private static final int SCALE_AND_ZERO_BITS = 32;

    static SideFormat plain(int bits) {
        return new SideFormat(bits == 32 ? 0 : 1, bits, 0, 0, 1f, false);
    }

    /** Codes of rotated keys (over up to 4 heads) or values (head by head). */
    static SideFormat rotated(
            int bits, CacheGeometry geometry, boolean keys, CacheOptions options) {
        int heads = keys ? rotationHeads(geometry.numKvHeads()) : 1;
        int groupSize = options.groupSize(geometry);
        return new SideFormat(2, bits, heads, groupSize, options.clip(bits), options.floatZero());
    }

    private static int rotationHeads(int numKvHeads) {
        int heads = MAX_ROTATION_HEADS;
        while (numKvHeads % heads != 0) {
            --heads;
        }
        return heads;
    }

    boolean isPlain() {
        return format != 2;
    }

    /** Bits per element with scales and zeros. */
    double effectiveBits() {
        return isPlain() ? bits : bits + (double) SCALE_AND_ZERO_BITS / groupSize;
    }

    void write(ByteBuffer out) {
        out.putInt(format).putInt(bits).putInt(rotationHeads).putInt(groupSize);
        out.putFloat(clip).putInt(floatZero ? 1 : 0).putInt(0).putInt(0);
    }
}
