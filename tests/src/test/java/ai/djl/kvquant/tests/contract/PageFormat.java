/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;
import java.util.Arrays;

/**
 * Where one side lies in a page, as layout.h documents it: codes [kvHeads, 4 tiles, headDim places,
 * 2 width bytes], token t of a tile at bit t width, least significant first; then fp16 [4 tiles,
 * groups, {scale, zero}, 16], with norms [4 tiles, kvHeads, 16], with a codebook of values [4
 * tiles, {step, start}, 16]; then, with a codebook, [4 tiles, outliers, {fp16 value, UINT16
 * channel}, 16].
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
    private final int outliers;

    /** First byte of each place of a head within a tile, then the bytes of the tile. */
    private final int[] places;

    private PageFormat(Layer layer, Side side, int begin) {
        this.layer = layer;
        this.side = side;
        this.begin = begin;
        places = new int[layer.headDim() + 1];
        for (int place = 0; place < layer.headDim(); ++place) {
            places[place + 1] = places[place] + 2 * side.width(place, layer.headDim());
        }
        groups =
                side.isAffine()
                        ? layer.channels() / side.groupSize()
                        : side.hasCodebook() && side.codebook().steps() == null ? 1 : 0;
        scales = begin + layer.kvHeads() * TILES * places[layer.headDim()];
        outliers = scales + TILES * (2 * groups + norms()) * TILE * 2;
        end = outliers + TILES * outliers() * 2 * TILE * 2;
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

    /** Norms of a token. */
    int norms() {
        return side.hasNorms() ? layer.kvHeads() : 0;
    }

    /** Bits of the element at a place of the layer. */
    int width(int place) {
        return side.width(place % layer.headDim(), layer.headDim());
    }

    /** First bit, within a page, of a token's element. */
    long elementBit(int slot, int place) {
        int head = place / layer.headDim();
        long tile = ((long) head * TILES + slot / TILE) * places[layer.headDim()];
        long field = begin + tile + places[place % layer.headDim()];
        return 8 * field + (long) slot % TILE * width(place);
    }

    int scaleOffset(int slot, int group) {
        return scales + (slot / TILE * groups + group) * 2 * TILE * 2 + slot % TILE * 2;
    }

    int zeroOffset(int slot, int group) {
        return scaleOffset(slot, group) + TILE * 2;
    }

    int normOffset(int slot, int head) {
        return scales + (slot / TILE * layer.kvHeads() + head) * TILE * 2 + slot % TILE * 2;
    }

    /** Slots of a token for outliers. */
    int outliers() {
        return side.hasCodebook() ? side.codebook().outliers() : 0;
    }

    int outlierOffset(int slot, int outlier) {
        return outliers + (slot / TILE * outliers() + outlier) * 2 * TILE * 2 + slot % TILE * 2;
    }

    double outlier(ByteBuffer page, int slot, int outlier) {
        return Half.read(page, outlierOffset(slot, outlier));
    }

    /** The channel of an outlier; Codebook.EMPTY: the slot is empty. */
    int outlierChannel(ByteBuffer page, int slot, int outlier) {
        return page.getShort(outlierOffset(slot, outlier) + TILE * 2) & 0xffff;
    }

    /** The code of an element; a page has readable bytes after its last code. */
    int code(ByteBuffer page, int slot, int place) {
        int width = width(place);
        long bit = elementBit(slot, place);
        int bits = page.getShort((int) (bit / 8)) & 0xffff;
        return bits >> bit % 8 & (1 << width) - 1;
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
                        case 2 ->
                                Half.read(page, scaleOffset(slot, group[c]))
                                        * (code(page, slot, c)
                                                - Half.read(page, zeroOffset(slot, group[c])));
                        case 3 -> staticElement(page, slot, c);
                        case 5 -> codebookElement(page, slot, c);
                        default ->
                                Half.read(page, normOffset(slot, c / layer.headDim()))
                                        * side.levels()[code(page, slot, c)];
                    };
        }
        for (int i = 0; i < outliers(); ++i) {
            int channel = outlierChannel(page, slot, i);
            if (channel != Codebook.EMPTY) {
                x[channel] = outlier(page, slot, i);
            }
        }
        return x;
    }

    /**
     * How large the terms of a token's elements are, by head: codes with a zero are differences,
     * which kernels take after they have summed up both terms; so are levels with a start.
     */
    double[] reach(ByteBuffer page, int slot) {
        double[] reach = new double[layer.kvHeads()];
        int[] group = side.isAffine() ? side.groups(layer.channels()) : null;
        for (int c = 0; group != null && c < layer.channels(); ++c) {
            double scale = Half.read(page, scaleOffset(slot, group[c]));
            double zero = Math.abs(Half.read(page, zeroOffset(slot, group[c])));
            int head = c / layer.headDim();
            reach[head] = Math.max(reach[head], scale * Math.max(zero, code(page, slot, c)));
        }
        if (side.hasCodebook() && groups > 0) {
            double level = side.codebook().largestReadLevel();
            double step = Half.read(page, scaleOffset(slot, 0));
            double start = Math.abs(Half.read(page, zeroOffset(slot, 0)));
            Arrays.fill(reach, Math.max(start, step * level));
        }
        return reach;
    }

    private double codebookElement(ByteBuffer page, int slot, int channel) {
        double level = side.codebook().readLevels()[code(page, slot, channel)];
        if (groups == 0) {
            return side.codebook().start(channel) + side.codebook().step(channel) * level;
        }
        double step = Half.read(page, scaleOffset(slot, 0));
        return Half.read(page, zeroOffset(slot, 0)) + step * level;
    }

    private double staticElement(ByteBuffer page, int slot, int place) {
        return width(place) == 0
                ? 0
                : side.codes().start(place) + side.codes().step(place) * code(page, slot, place);
    }
}
