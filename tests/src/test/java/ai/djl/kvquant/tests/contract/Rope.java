/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

/**
 * Rotary embedding: angle = position times inverse frequency, in double precision; channel i turns
 * with i + headDim / 2.
 */
final class Rope {

    private static final double BASE = 10000;

    final double[] inverseFrequencies;
    private final int shift;
    private final double[][] cos;
    private final double[][] sin;
    private final float[] table;

    /** Positions 0 to limit - 1, all moved by shift. */
    Rope(int headDim, int limit, int shift) {
        this(headDim, limit, shift, BASE);
    }

    Rope(int headDim, int limit, int shift, double base) {
        this.shift = shift;
        inverseFrequencies = new double[headDim / 2];
        for (int i = 0; i < headDim / 2; ++i) {
            inverseFrequencies[i] = Math.pow(base, -2.0 * i / headDim);
        }
        cos = new double[limit][headDim / 2];
        sin = new double[limit][headDim / 2];
        for (int t = 0; t < limit; ++t) {
            for (int i = 0; i < headDim / 2; ++i) {
                cos[t][i] = Math.cos((t + shift) * inverseFrequencies[i]);
                sin[t][i] = Math.sin((t + shift) * inverseFrequencies[i]);
            }
        }
        table = makeTable();
    }

    int limit() {
        return cos.length;
    }

    /** Turns every head of x, in place. */
    void turn(double[] x, int position) {
        int half = inverseFrequencies.length;
        for (int head = 0; head < x.length; head += 2 * half) {
            for (int i = 0; i < half; ++i) {
                double a = x[head + i];
                double b = x[head + half + i];
                x[head + i] = a * cos[position][i] - b * sin[position][i];
                x[head + half + i] = b * cos[position][i] + a * sin[position][i];
            }
        }
    }

    /** The operators' table, as rope.h documents it: FLOAT32 [64 + n, 2, headDim / 2]. */
    float[] table() {
        return table;
    }

    private float[] makeTable() {
        int half = inverseFrequencies.length;
        int bases = (limit() + 63) / 64;
        float[] values = new float[(64 + bases) * 2 * half];
        for (int i = 0; i < half; ++i) {
            for (int t = 0; t < 64; ++t) {
                values[i * 64 + t] = (float) Math.cos(t * inverseFrequencies[i]);
                values[(half + i) * 64 + t] = (float) Math.sin(t * inverseFrequencies[i]);
            }
            for (int n = 0; n < bases; ++n) {
                double angle = (64.0 * n + shift) * inverseFrequencies[i];
                values[(64 + n) * 2 * half + i] = (float) Math.cos(angle);
                values[(64 + n) * 2 * half + half + i] = (float) Math.sin(angle);
            }
        }
        return values;
    }
}
