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

    /** How far the 8-bit levels, which are uniform, reach, in units of the root mean square. */
    private static final float REACH = 5f;

    /**
     * The best levels for a normal distribution (Lloyd and Max), upper halves; of 2 bits the best
     * equally spaced ones, whose error is 1 % larger and which tensor cores need one product for
     * instead of two.
     */
    private static final float[][] HALVES = {
        {0.4979f, 1.4937f},
        {0.2451f, 0.7560f, 1.3439f, 2.1520f},
        {0.1284f, 0.3881f, 0.6568f, 0.9424f, 1.2562f, 1.6181f, 2.0690f, 2.7326f}
    };

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
        int count = 1 << bits;
        float[] levels = new float[count];
        for (int i = 0; i < count / 2; ++i) {
            float level = bits == 8 ? REACH * (2 * i + 1) / (count - 1) : HALVES[bits - 2][i];
            levels[count / 2 + i] = level;
            levels[count / 2 - 1 - i] = -level;
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
