/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.ArrayList;
import java.util.List;

/**
 * RoPE's cosines and sines over the positions of a page where they are slow, as few polynomials of
 * the position: WaveTable of the operators' layout.h.
 */
final class WaveTable {

    private static final int POSITIONS = KvCache.PAGE_TOKENS;
    private static final int MOST_TERMS = 16;

    /** Largest error of a cosine or sine. */
    private static final double TOLERANCE = 1e-6;

    private WaveTable() {}

    /**
     * Fast pairs, terms, polynomials [terms, positions], weights [terms, {cosine, sine}, pairs -
     * fast], for the number of terms that leaves the least to compute.
     */
    static float[] of(double[] inverseFrequencies) {
        List<double[]> polynomials = polynomials();
        int best = inverseFrequencies.length;
        int terms = 0;
        for (int candidate = 1; candidate <= MOST_TERMS; ++candidate) {
            int fast = fastPairs(inverseFrequencies, polynomials.subList(0, candidate));
            if (2 * fast + candidate < 2 * best + terms) {
                best = fast;
                terms = candidate;
            }
        }
        return pack(inverseFrequencies, polynomials.subList(0, terms), best);
    }

    /** Polynomials of rising degree, orthonormal over the positions. */
    private static List<double[]> polynomials() {
        List<double[]> basis = new ArrayList<>();
        for (int degree = 0; degree < MOST_TERMS; ++degree) {
            double[] next = new double[POSITIONS];
            for (int j = 0; j < POSITIONS; ++j) {
                double x = 2.0 * j / (POSITIONS - 1) - 1;
                next[j] = degree == 0 ? 1 : x * basis.get(degree - 1)[j];
            }
            // Twice: what rounding leaves of earlier ones goes, too.
            basis.forEach(earlier -> subtract(next, earlier, dot(next, earlier)));
            basis.forEach(earlier -> subtract(next, earlier, dot(next, earlier)));
            double norm = Math.sqrt(dot(next, next));
            for (int j = 0; j < POSITIONS; ++j) {
                next[j] /= norm;
            }
            basis.add(next);
        }
        return basis;
    }

    /** The first pair from which on all waves are polynomials within the tolerance. */
    private static int fastPairs(double[] frequencies, List<double[]> polynomials) {
        int fast = frequencies.length;
        while (fast > 0 && error(frequencies[fast - 1], polynomials) <= TOLERANCE) {
            --fast;
        }
        return fast;
    }

    private static double error(double frequency, List<double[]> polynomials) {
        double worst = 0;
        for (int part = 0; part < 2; ++part) {
            double[] rest = wave(frequency, part);
            for (double[] polynomial : polynomials) {
                subtract(rest, polynomial, dot(rest, polynomial));
            }
            for (double value : rest) {
                worst = Math.max(worst, Math.abs(value));
            }
        }
        return worst;
    }

    private static float[] pack(double[] frequencies, List<double[]> polynomials, int fast) {
        int slow = frequencies.length - fast;
        float[] table = new float[2 + polynomials.size() * (POSITIONS + 2 * slow)];
        table[0] = fast;
        table[1] = polynomials.size();
        int weights = 2 + polynomials.size() * POSITIONS;
        for (int t = 0; t < polynomials.size(); ++t) {
            double[] polynomial = polynomials.get(t);
            for (int j = 0; j < POSITIONS; ++j) {
                table[2 + t * POSITIONS + j] = (float) polynomial[j];
            }
            for (int part = 0; part < 2; ++part) {
                for (int i = 0; i < slow; ++i) {
                    double weight = dot(wave(frequencies[fast + i], part), polynomial);
                    table[weights + (2 * t + part) * slow + i] = (float) weight;
                }
            }
        }
        return table;
    }

    private static double[] wave(double frequency, int part) {
        double[] wave = new double[POSITIONS];
        for (int j = 0; j < POSITIONS; ++j) {
            wave[j] = part == 0 ? Math.cos(j * frequency) : Math.sin(j * frequency);
        }
        return wave;
    }

    private static double dot(double[] a, double[] b) {
        double sum = 0;
        for (int j = 0; j < POSITIONS; ++j) {
            sum += a[j] * b[j];
        }
        return sum;
    }

    private static void subtract(double[] from, double[] vector, double factor) {
        for (int j = 0; j < POSITIONS; ++j) {
            from[j] -= factor * vector[j];
        }
    }
}
