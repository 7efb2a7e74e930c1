/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

/**
 * A quantizer of equally spaced levels: {@code start + step * code} for all codes of so many bits.
 *
 * <p>All arithmetic is that of floats, without fused multiply-add, so that operators which compute
 * the same expressions write and read the same bits. A width of 0 drops the channel: every value is
 * read back as 0.
 *
 * @param start the value of code 0
 * @param step the distance of two levels, positive
 * @param bits the width of a code: 0, 1, 2, 3, 4 or 8
 */
record UniformQuantizer(float start, float step, int bits) {

    /** The quantizer of a dropped channel. */
    static final UniformQuantizer DROPPED = new UniformQuantizer(0f, 1f, 0);

    /**
     * A quantizer and how well it fits.
     *
     * @param quantizer the quantizer
     * @param meanSquaredError its mean squared error on the samples that it was fitted to
     */
    record Fit(UniformQuantizer quantizer, double meanSquaredError) {}

    UniformQuantizer {
        checkBits(bits);
        if (!Float.isFinite(start)) {
            throw new IllegalArgumentException(
                    "The start of a quantizer is " + start + "; it must be finite.");
        }
        if (!(step > 0 && step <= Float.MAX_VALUE)) {
            throw new IllegalArgumentException(
                    "The step of a quantizer is " + step + "; it must be positive and finite.");
        }
        if (bits == 0 && start != 0) {
            throw new IllegalArgumentException(
                    "A quantizer of 0 bits starts at " + start + "; it must start at 0.");
        }
    }

    /**
     * Returns the quantizer of least mean squared error. Whoever needs several widths of the same
     * samples prepares {@link SortedSamples} once.
     */
    static Fit fit(float[] samples, int bits) {
        checkBits(bits);
        return new SortedSamples(samples).fit(bits);
    }

    static void checkBits(int bits) {
        if (bits < 0 || bits > 8 || bits > 4 && bits < 8) {
            throw new IllegalArgumentException(
                    "A code of " + bits + " bits was asked for; allowed are 0, 1, 2, 3, 4 and 8.");
        }
    }

    /** The number of levels. */
    int levels() {
        return 1 << bits;
    }

    /** Returns the code of a value: the nearest level, the even code in the middle of two. */
    int encode(float value) {
        if (Float.isNaN(value)) {
            throw new IllegalArgumentException("NaN has no code; only numbers can be quantized.");
        }
        double code = Math.rint((value - start) / step);
        return (int) Math.max(0, Math.min(levels() - 1, code));
    }

    /** Returns the value of a code. */
    float decode(int code) {
        if (code < 0 || code >= levels()) {
            throw new IllegalArgumentException(
                    "Code " + code + " is not one of 0 to " + (levels() - 1) + ".");
        }
        return start + step * code;
    }
}
