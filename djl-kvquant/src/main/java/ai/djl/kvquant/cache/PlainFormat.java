/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * Elements as they are.
 *
 * @param bits 32 or 16
 */
record PlainFormat(int bits) implements SideFormat {

    @Override
    public double effectiveBits() {
        return bits;
    }

    @Override
    public boolean isPreRope() {
        return false;
    }

    @Override
    public boolean isQuantized() {
        return false;
    }

    @Override
    public void write(ParamsWriter out) {
        out.putInt(bits == 32 ? 0 : 1).putInt(bits);
        for (int i = 2; i < BYTES / Integer.BYTES; ++i) {
            out.putInt(0);
        }
    }
}
