/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * RotateKV's codes of rotated elements, with a scale and zero per token and group.
 *
 * @param bits bits of a code
 * @param rotationHeads kv heads rotated together
 * @param groupSize channels that share a scale and zero
 * @param clip factor on a group's minimum and maximum
 * @param floatZero whether zeros are not rounded to integers
 * @param order channel at each place of the order whose runs form the groups; null: natural
 */
record RotatedFormat(
        int bits, int rotationHeads, int groupSize, float clip, boolean floatZero, int[] order)
        implements SideFormat {

    private static final int FORMAT = 2;
    private static final int SCALE_AND_ZERO_BITS = 32;

    /** Keys, rotated over up to 4 heads, in the order of a calibration if there is one. */
    static RotatedFormat keys(int bits, CacheGeometry geometry, CacheOptions options, int layer) {
        int heads = geometry.rotationHeads();
        Calibration calibration = options.calibration();
        int[] order = calibration == null ? null : calibration.integers(layer, "keys.order");
        return of(bits, heads, geometry, options, order);
    }

    /** Values, rotated head by head. */
    static RotatedFormat values(int bits, CacheGeometry geometry, CacheOptions options) {
        return of(bits, 1, geometry, options, null);
    }

    private static RotatedFormat of(
            int bits, int heads, CacheGeometry geometry, CacheOptions options, int[] order) {
        int groupSize = options.groupSize(geometry);
        return new RotatedFormat(
                bits, heads, groupSize, options.clip(bits), options.floatZero(), order);
    }

    @Override
    public double effectiveBits() {
        return bits + (double) SCALE_AND_ZERO_BITS / groupSize;
    }

    @Override
    public boolean isPreRope() {
        return true;
    }

    @Override
    public boolean isQuantized() {
        return true;
    }

    @Override
    public void write(ParamsWriter out) {
        out.putInt(FORMAT).putInt(bits).putInt(rotationHeads).putInt(groupSize);
        out.putFloat(clip).putInt(floatZero ? 1 : 0).putTable(order);
        for (int i = 7; i < BYTES / Integer.BYTES; ++i) {
            out.putInt(0);
        }
    }
}
