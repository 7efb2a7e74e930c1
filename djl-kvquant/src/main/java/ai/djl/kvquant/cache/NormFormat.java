/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * Values rotated head by head, as codes of fixed levels and a norm per token and head that makes
 * the rebuilt vector unbiased.
 *
 * @param bits bits of a code
 * @param headDim channels of a head
 */
record NormFormat(int bits, int headDim) implements SideFormat {

    private static final int FORMAT = 4;
    private static final int NORM_BITS = 16;

    /**
     * How far the levels of 8 bits are apart, in units of the root mean square. Of fewer bits the
     * best for a normal distribution; uneven levels would err 1 %, 8 % and 22 % less at 2, 3 and 4
     * bits, but equally spaced ones are read by shifts and masks where tensor cores add values.
     */
    private static final float MANY_STEP = 10f / 255;

    private static final float[] FEW_STEPS = {0.9958f, 0.5860f, 0.3352f};

    @Override
    public double effectiveBits() {
        return bits + (double) NORM_BITS / headDim;
    }

    @Override
    public boolean isPreRope() {
        return false;
    }

    @Override
    public boolean isQuantized() {
        return true;
    }

    private float[] levels() {
        float step = bits == 8 ? MANY_STEP : FEW_STEPS[bits - 2];
        float[] levels = new float[1 << bits];
        for (int i = 0; i < levels.length; ++i) {
            levels[i] = step * (i - 0.5f * (levels.length - 1));
        }
        return levels;
    }

    @Override
    public void write(ParamsWriter out) {
        out.putInt(FORMAT).putInt(bits).putInt(1).putInt(0).putFloat(1f).putInt(0);
        out.putInt(0).putInt(0).putInt(0).putTable(levels());
        for (int i = 10; i < BYTES / Integer.BYTES; ++i) {
            out.putInt(0);
        }
    }
}
