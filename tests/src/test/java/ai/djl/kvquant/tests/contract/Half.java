/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;

/** IEEE 754 half precision, from its definition. */
final class Half {

    private static final int SMALLEST_EXPONENT = -14;
    private static final int MANTISSA_BITS = 10;

    private Half() {}

    /** The half nearest to x, ties to even. */
    static double round(double x) {
        if (x == 0 || Double.isNaN(x)) {
            return x;
        }
        int exponent = Math.max(Math.getExponent(x), SMALLEST_EXPONENT);
        double step = Math.scalb(1.0, exponent - MANTISSA_BITS);
        double rounded = Math.rint(x / step) * step;
        return Math.abs(rounded) > 65504 ? Math.copySign(Double.POSITIVE_INFINITY, x) : rounded;
    }

    static double[] round(double[] x) {
        double[] out = new double[x.length];
        for (int i = 0; i < x.length; ++i) {
            out[i] = round(x[i]);
        }
        return out;
    }

    /** The half stored in two bytes, little endian. */
    static double read(ByteBuffer bytes, long offset) {
        int bits = bytes.getShort(Math.toIntExact(offset)) & 0xffff;
        int exponent = bits >> MANTISSA_BITS & 0x1f;
        int mantissa = bits & 0x3ff;
        double sign = bits >> 15 == 0 ? 1 : -1;
        if (exponent == 0x1f) {
            return mantissa == 0 ? sign * Double.POSITIVE_INFINITY : Double.NaN;
        }
        return exponent == 0
                ? sign * Math.scalb((double) mantissa, SMALLEST_EXPONENT - MANTISSA_BITS)
                : sign * Math.scalb(1024.0 + mantissa, exponent - 15 - MANTISSA_BITS);
    }
}
