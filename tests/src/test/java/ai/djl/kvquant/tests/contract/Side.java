/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;

/**
 * How keys or values are stored: the fields of SideParams in layout.h.
 *
 * @param format 0: fp32, 1: fp16, 2: codes with scale and zero per token and group
 * @param bits of a stored element
 * @param rotationHeads kv heads rotated together; 0: natural basis
 * @param groupSize channels of a group
 * @param clip factor on a group's minimum and maximum
 * @param floatZero whether zeros are not rounded to integers
 * @param order the channel at each place of the order whose runs form the groups; null: natural
 */
record Side(
        int format,
        int bits,
        int rotationHeads,
        int groupSize,
        float clip,
        boolean floatZero,
        int[] order) {

    static final int HEADER_BYTES = 32;

    static Side plain(int bits) {
        return new Side(bits == 32 ? 0 : 1, bits, 0, 0, 1f, false, null);
    }

    static Side affine(int bits, int rotationHeads, int groupSize) {
        return new Side(2, bits, rotationHeads, groupSize, bits == 2 ? 0.8f : 1f, false, null);
    }

    Side withOrder(int[] newOrder) {
        return new Side(format, bits, rotationHeads, groupSize, clip, floatZero, newOrder);
    }

    Side withFloatZero() {
        return new Side(format, bits, rotationHeads, groupSize, clip, true, order);
    }

    boolean isAffine() {
        return format == 2;
    }

    int levels() {
        return (1 << bits) - 1;
    }

    /** The group of each channel. */
    int[] groups(int channels) {
        int[] groups = new int[channels];
        for (int place = 0; place < channels; ++place) {
            groups[order == null ? place : order[place]] = place / groupSize;
        }
        return groups;
    }

    void write(ByteBuffer out, int orderOffset) {
        out.putInt(format).putInt(bits).putInt(rotationHeads).putInt(groupSize);
        out.putFloat(clip).putInt(floatZero ? 1 : 0).putInt(orderOffset).putInt(0);
    }
}
