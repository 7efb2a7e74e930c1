/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;

/**
 * Where one side lies in a page, as layout.h documents it: codes [kvHeads, 4 tiles, headDim, 2 bits
 * bytes], token t of a tile at bit t bits, least significant first; then fp16 [4 tiles, groups,
 * {scale, zero}, 16].
 */
final class PageFormat {

    static final int TOKENS = 64;
    static final int TILE = 16;
    private static final int TILES = TOKENS / TILE;

    final Layer layer;
    final Side side;
    final int begin;
    final int end;
    private final int groups;
    private final int scales;

    private PageFormat(Layer layer, Side side, int begin) {
        this.layer = layer;
        this.side = side;
        this.begin = begin;
        groups = side.isAffine() ? layer.channels() / side.groupSize() : 0;
        scales = begin + layer.channels() * TILES * 2 * side.bits();
        end = scales + TILES * groups * 2 * TILE * 2;
    }

    static PageFormat keys(Layer layer) {
        return new PageFormat(layer, layer.keys(), 0);
    }

    static PageFormat values(Layer layer) {
        return new PageFormat(layer, layer.values(), keys(layer).end);
    }

    /** Bytes of a page: 8 readable bytes after the last code, in whole cache lines. */
    static int pageBytes(Layer layer) {
        return (values(layer).end + 8 + 63) / 64 * 64;
    }

    int groups() {
        return groups;
    }

    /** First bit, within a page, of a token's element. */
    long elementBit(int slot, int channel) {
        int head = channel / layer.headDim();
        long field =
                ((long) head * TILES + slot / TILE) * layer.headDim() + channel % layer.headDim();
        return 8 * (begin + field * 2 * side.bits()) + (long) slot % TILE * side.bits();
    }

    int scaleOffset(int slot, int group) {
        return scales + (slot / TILE * groups + group) * 2 * TILE * 2 + slot % TILE * 2;
    }

    int zeroOffset(int slot, int group) {
        return scaleOffset(slot, group) + TILE * 2;
    }

    int code(ByteBuffer page, int slot, int channel) {
        int code = 0;
        for (int i = 0; i < side.bits(); ++i) {
            long bit = elementBit(slot, channel) + i;
            code |= (page.get((int) (bit / 8)) >> bit % 8 & 1) << i;
        }
        return code;
    }

    /** A token, [channels], in the basis in which it is stored. */
    double[] read(ByteBuffer page, int slot) {
        double[] x = new double[layer.channels()];
        int[] group = side.isAffine() ? side.groups(layer.channels()) : null;
        for (int c = 0; c < x.length; ++c) {
            int offset = (int) (elementBit(slot, c) / 8);
            x[c] =
                    switch (side.format()) {
                        case 0 -> page.getFloat(offset);
                        case 1 -> Half.read(page, offset);
                        default ->
                                Half.read(page, scaleOffset(slot, group[c]))
                                        * (code(page, slot, c)
                                                - Half.read(page, zeroOffset(slot, group[c])));
                    };
        }
        return x;
    }
}
