/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;

/**
 * How keys or values are stored: the fields of SideParams in layout.h.
 *
 * @param format 0: fp32, 1: fp16, 2: codes with scale and zero per token and group, 3: static codes
 *     of keys, 4: levels times a norm per token and head, 5: levels of a codebook
 * @param bits of a stored element; 0 with static codes
 * @param rotationHeads kv heads rotated together; 0: natural basis
 * @param groupSize channels of a group
 * @param clip factor on a group's minimum and maximum
 * @param floatZero whether zeros are not rounded to integers
 * @param order the channel at each place of the order whose runs form the groups or share a width;
 *     null: natural
 * @param codes what is static about keys; null: nothing
 * @param levels what each code stands for, in norms; null: nothing
 * @param codebook what codes of a codebook stand for; null: nothing
 */
record Side(
        int format,
        int bits,
        int rotationHeads,
        int groupSize,
        float clip,
        boolean floatZero,
        int[] order,
        StaticCodes codes,
        float[] levels,
        Codebook codebook) {

    static final int HEADER_BYTES = 80;

    static Side plain(int bits) {
        return new Side(bits == 32 ? 0 : 1, bits, 0, 0, 0f, false, null, null, null, null);
    }

    static Side affine(int bits, int rotationHeads, int groupSize) {
        float clip = bits == 2 ? 0.8f : bits == 3 ? 0.9f : 1f;
        return new Side(2, bits, rotationHeads, groupSize, clip, false, null, null, null, null);
    }

    static Side statics(StaticCodes codes, int[] order) {
        return new Side(3, 0, 0, 0, 1f, false, order, codes, null, null);
    }

    static Side norm(float[] levels, boolean rotated) {
        int bits = Integer.numberOfTrailingZeros(levels.length);
        return new Side(4, bits, rotated ? 1 : 0, 0, 1f, false, null, null, levels, null);
    }

    static Side codebook(Codebook codebook) {
        int bits = codebook.bits();
        return new Side(5, bits, 0, 0, 1f, false, null, null, null, codebook);
    }

    Side withOrder(int[] newOrder) {
        return new Side(
                format,
                bits,
                rotationHeads,
                groupSize,
                clip,
                floatZero,
                newOrder,
                codes,
                levels,
                codebook);
    }

    Side withFloatZero() {
        return new Side(
                format, bits, rotationHeads, groupSize, clip, true, order, codes, levels, codebook);
    }

    Side withCodes(StaticCodes newCodes) {
        return new Side(
                format,
                bits,
                rotationHeads,
                groupSize,
                clip,
                floatZero,
                order,
                newCodes,
                levels,
                codebook);
    }

    Side withLevels(float... newLevels) {
        return new Side(
                format,
                bits,
                rotationHeads,
                groupSize,
                clip,
                floatZero,
                order,
                codes,
                newLevels,
                codebook);
    }

    boolean isAffine() {
        return format == 2;
    }

    boolean isStatic() {
        return format == 3;
    }

    boolean hasNorms() {
        return format == 4;
    }

    boolean hasCodebook() {
        return format == 5;
    }

    /** Whether codes are made of elements. */
    boolean isQuantized() {
        return format >= 2;
    }

    /** Codes beyond the lowest one. */
    int levelSteps() {
        return (1 << bits) - 1;
    }

    /** Bits of the element at a place of a head. */
    int width(int place, int headDim) {
        return isStatic() ? codes.width(place, headDim) : bits;
    }

    /** The group of each channel. */
    int[] groups(int channels) {
        int[] groups = new int[channels];
        for (int place = 0; place < channels; ++place) {
            groups[order == null ? place : order[place]] = place / groupSize;
        }
        return groups;
    }

    void write(ByteBuffer out, Tables tables) {
        out.putInt(format).putInt(bits).putInt(rotationHeads).putInt(groupSize);
        out.putFloat(clip).putInt(floatZero ? 1 : 0).putInt(tables.add(order));
        if (codebook != null) {
            codebook.write(out, tables);
        } else if (codes == null) {
            out.putInt(0).putInt(0).putInt(tables.add(levels));
            out.put(new byte[HEADER_BYTES - 40]);
        } else {
            codes.write(out, tables);
        }
    }
}
