/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

/** Sorts many floats faster than comparisons do. */
final class RadixSort {

    private static final int DIGIT_BITS = 11;
    private static final int DIGITS = 3;

    private RadixSort() {}

    /**
     * Returns the indices of values in the order of {@link Float#compare}, in which NaN comes last;
     * equal values keep their order.
     */
    static int[] order(float[] values) {
        int[] keys = new int[values.length];
        int[] order = new int[values.length];
        for (int i = 0; i < keys.length; ++i) {
            int bits = Float.floatToIntBits(values[i]);
            // as unsigned numbers: negative floats turned over, below the positive ones
            keys[i] = bits ^ (bits >> 31 | Integer.MIN_VALUE);
            order[i] = i;
        }
        for (int digit = 0; digit < DIGITS; ++digit) {
            order = sortedBy(keys, order, digit * DIGIT_BITS);
        }
        return order;
    }

    private static int[] sortedBy(int[] keys, int[] order, int shift) {
        int mask = (1 << DIGIT_BITS) - 1;
        int[] starts = new int[mask + 2];
        for (int key : keys) {
            ++starts[(key >>> shift & mask) + 1];
        }
        for (int digit = 0; digit < mask; ++digit) {
            starts[digit + 1] += starts[digit];
        }
        int[] sorted = new int[order.length];
        for (int index : order) {
            sorted[starts[keys[index] >>> shift & mask]++] = index;
        }
        return sorted;
    }
}
