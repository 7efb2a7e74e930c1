/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * RotateKV's codes of rotated elements, with a scale and zero per token and group.
 *
 * @param bits bits of a code
 * @param rotationHeads kv heads rotated together; 0: not rotated
 * @param groupSize channels that share a scale and zero
 * @param clip factor on a group's minimum and maximum
 * @param floatZero whether zeros are not rounded to integers
 * @param preRope whether keys are stored before RoPE
 * @param order channel at each place of the order whose runs form the groups; null: natural
 */
record RotatedFormat(
        int bits,
        int rotationHeads,
        int groupSize,
        float clip,
        boolean floatZero,
        boolean preRope,
        int[] order)
        implements SideFormat {

    private static final int FORMAT = 2;
    private static final int SCALE_AND_ZERO_BITS = 32;

    /** Keys, by default rotated over up to 4 heads and ordered if there is a calibration. */
    static RotatedFormat keys(int bits, CacheGeometry geometry, CacheOptions options, int layer) {
        RotationOptions rotation = options.rotation();
        return new RotatedFormat(
                bits,
                rotation.keys().heads(geometry),
                options.groups().size(geometry),
                options.groups().clip(bits),
                options.groups().floatZero(),
                rotation.keys().isPreRope(),
                rotation.channels(options.calibration(), layer, geometry));
    }

    /** Values, by default rotated head by head. */
    static RotatedFormat values(int bits, CacheGeometry geometry, CacheOptions options) {
        return new RotatedFormat(
                bits,
                options.rotation().values() ? 1 : 0,
                options.groups().size(geometry),
                options.groups().clip(bits),
                options.groups().floatZero(),
                false,
                null);
    }

    @Override
    public double effectiveBits() {
        return bits + (double) SCALE_AND_ZERO_BITS / groupSize;
    }

    @Override
    public boolean isPreRope() {
        return preRope;
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
