/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.List;

/** How RotateKV's codes are made, which have a scale and a zero-point per token and group. */
final class GroupOptions {

    static final String SIZE = "kv_group_size";
    static final String CLIP = "kv_clip";
    static final String FLOAT_ZERO = "kv_float_zero";

    private final OptionValues values;
    private final boolean floatZero;

    /**
     * Reads the options.
     *
     * @throws IllegalArgumentException if one has an impossible value or no effect
     */
    GroupOptions(OptionValues values, CacheDtype dtype) {
        this.values = values;
        for (String name : List.of(SIZE, CLIP, FLOAT_ZERO)) {
            if (!dtype.isQuantized()) {
                values.refuse(name, "keys or values are quantized", dtype);
            } else if (!dtype.uses(CacheMethod.ROTATEKV)) {
                RotationOptions.refuse(values, name, "keys or values are", dtype);
            }
        }
        floatZero = values.bool(FLOAT_ZERO, false);
        clip(2);
    }

    /** kv_group_size, the channels that share a scale and a zero-point. */
    int size(CacheGeometry geometry) {
        return values.integer(
                SIZE,
                geometry.headDim(),
                size -> size >= 16 && size % 16 == 0 && geometry.channels() % size == 0,
                "multiples of 16 that divide the "
                        + geometry.channels()
                        + " key channels of a layer");
    }

    /** kv_clip, the share of a group's range that codes cover. */
    float clip(int bits) {
        double clip =
                values.number(
                        CLIP,
                        defaultClip(bits),
                        share -> (float) share > 0 && (float) share <= 1,
                        "a number above 0 and at most 1");
        return (float) clip;
    }

    /** The paper's; at 3 bits, where it has 1, what diverges least on WikiText-2 validation. */
    private static double defaultClip(int bits) {
        return switch (bits) {
            case 2 -> 0.8;
            case 3 -> 0.9;
            default -> 1;
        };
    }

    /** kv_float_zero, whether zero-points are numbers of floating point. */
    boolean floatZero() {
        return floatZero;
    }
}
