/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/**
 * The rotation of RotateKV by explicit matrices: a Walsh-Hadamard matrix on every head, and over
 * the heads of a group a Hadamard matrix (1, 2, 4 heads) or I - (2/3) J (3 heads). Both are
 * symmetric and orthogonal: the rotation undoes itself.
 */
final class Rotation {

    private final int headDim;
    private final int heads;
    private final double[][] channels;
    private final double[][] mixing;

    private static final Map<Integer, Rotation> KNOWN = new ConcurrentHashMap<>();

    static Rotation of(int headDim, int heads) {
        return KNOWN.computeIfAbsent(headDim * 8 + heads, key -> new Rotation(headDim, heads));
    }

    private Rotation(int headDim, int heads) {
        this.headDim = headDim;
        this.heads = heads;
        channels = heads == 0 ? null : hadamard(headDim);
        mixing = heads == 0 ? null : heads == 3 ? householder() : hadamard(heads);
    }

    /**
     * A copy of this rotation whose Hadamard matrix has one sign wrong, to prove that tests notice.
     */
    Rotation withWrongSign() {
        Rotation other = new Rotation(headDim, heads);
        other.channels[3][5] = -other.channels[3][5];
        return other;
    }

    static double[][] hadamard(int n) {
        double[][] h = new double[n][n];
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j < n; ++j) {
                h[i][j] = (Integer.bitCount(i & j) % 2 == 0 ? 1 : -1) / Math.sqrt(n);
            }
        }
        return h;
    }

    private static double[][] householder() {
        double[][] m = new double[3][3];
        for (int i = 0; i < 3; ++i) {
            for (int j = 0; j < 3; ++j) {
                m[i][j] = (i == j ? 1 : 0) - 2.0 / 3;
            }
        }
        return m;
    }

    /** The rotated x, [kvHeads, headDim]. */
    double[] apply(double[] x) {
        if (heads == 0) {
            return x.clone();
        }
        double[] turned = new double[x.length];
        for (int head = 0; head < x.length; head += headDim) {
            multiply(channels, x, turned, head);
        }
        double[] out = new double[x.length];
        int group = heads * headDim;
        for (int first = 0; first < x.length; first += group) {
            for (int to = 0; to < heads; ++to) {
                for (int from = 0; from < heads; ++from) {
                    for (int i = 0; i < headDim; ++i) {
                        out[first + to * headDim + i] +=
                                mixing[to][from] * turned[first + from * headDim + i];
                    }
                }
            }
        }
        return out;
    }

    /** out[begin ..] = matrix x[begin ..]; by columns, which the compiler vectorizes. */
    private static void multiply(double[][] matrix, double[] x, double[] out, int begin) {
        int n = matrix.length;
        double[] sum = new double[n];
        for (int j = 0; j < n; ++j) {
            // The matrix is symmetric: its row j is its column j.
            double[] column = matrix[j];
            double factor = x[begin + j];
            for (int i = 0; i < n; ++i) {
                sum[i] += column[i] * factor;
            }
        }
        System.arraycopy(sum, 0, out, begin, n);
    }
}
