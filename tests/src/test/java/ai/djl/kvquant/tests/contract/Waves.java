/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

/**
 * RoPE's waves over the positions of a page as few polynomials, as layout.h describes WaveTable:
 * Chebyshev polynomials here.
 */
final class Waves {

    private static final int POSITIONS = PageFormat.TOKENS;
    private static final int NODES = 256;

    /** Largest error of a cosine or sine. */
    private static final double TOLERANCE = 1e-6;

    private Waves() {}

    /**
     * Fast pairs, terms, polynomials [terms, 64], weights [terms, {cosine, sine}, pairs - fast]: as
     * many pairs as so many terms can describe.
     */
    static float[] table(double[] frequencies, int terms) {
        int fast = frequencies.length;
        while (fast > 0 && error(frequencies[fast - 1], terms) <= TOLERANCE) {
            --fast;
        }
        int slow = frequencies.length - fast;
        float[] table = new float[2 + terms * (POSITIONS + 2 * slow)];
        table[0] = fast;
        table[1] = terms;
        for (int k = 0; k < terms; ++k) {
            for (int j = 0; j < POSITIONS; ++j) {
                table[2 + k * POSITIONS + j] = (float) chebyshev(k, position(j));
            }
            int row = 2 + terms * POSITIONS + 2 * k * slow;
            for (int i = 0; i < slow; ++i) {
                table[row + i] = (float) weight(k, frequencies[fast + i], 0);
                table[row + slow + i] = (float) weight(k, frequencies[fast + i], 1);
            }
        }
        return table;
    }

    /** The page's positions as numbers from -1 to 1. */
    private static double position(int j) {
        return 2.0 * j / (POSITIONS - 1) - 1;
    }

    private static double chebyshev(int k, double x) {
        return Math.cos(k * Math.acos(x));
    }

    /** A cosine (part 0) or sine at a number from -1 to 1. */
    private static double wave(double frequency, int part, double x) {
        double angle = frequency * (x + 1) * (POSITIONS - 1) / 2;
        return part == 0 ? Math.cos(angle) : Math.sin(angle);
    }

    private static double weight(int k, double frequency, int part) {
        double sum = 0;
        for (int i = 0; i < NODES; ++i) {
            double angle = Math.PI * (i + 0.5) / NODES;
            sum += Math.cos(k * angle) * wave(frequency, part, Math.cos(angle));
        }
        return sum * (k == 0 ? 1 : 2) / NODES;
    }

    private static double error(double frequency, int terms) {
        double worst = 0;
        for (int part = 0; part < 2; ++part) {
            double[] rest = new double[POSITIONS];
            for (int k = 0; k < terms; ++k) {
                double weight = weight(k, frequency, part);
                for (int j = 0; j < POSITIONS; ++j) {
                    rest[j] += weight * chebyshev(k, position(j));
                }
            }
            for (int j = 0; j < POSITIONS; ++j) {
                double exact = wave(frequency, part, position(j));
                worst = Math.max(worst, Math.abs(rest[j] - exact));
            }
        }
        return worst;
    }
}
