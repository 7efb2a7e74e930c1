/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.util.Map;
import java.util.Random;
import java.util.concurrent.ConcurrentHashMap;

/**
 * A dense basis over one head or all heads, neither orthogonal nor symmetric: reflections, then a
 * factor for each channel. Forward and inverse are rounded to fp32 each by itself.
 */
final class Basis {

    private static final int REFLECTIONS = 4;
    private static final Map<Integer, Basis> KNOWN = new ConcurrentHashMap<>();

    private final int heads;
    private final int n;
    private final float[] forward;
    private final float[] inverse;
    private final double[][] forwardColumns;
    private final double[][] inverseColumns;

    private Basis(int heads, int headDim, int channels) {
        this.heads = heads;
        n = heads * headDim;
        forward = new float[channels * n];
        inverse = new float[channels * n];
        Random random = new Random(n);
        for (int first = 0; first < channels; first += n) {
            fill(orthogonal(random), factors(random), first * n);
        }
        forwardColumns = columns(forward, channels);
        inverseColumns = columns(inverse, channels);
    }

    /** A basis over one head, different for each, or over all heads. */
    static Basis of(int kvHeads, int headDim, boolean layerWide) {
        int key = 2 * (kvHeads * 1000 + headDim) + (layerWide ? 1 : 0);
        return KNOWN.computeIfAbsent(
                key, k -> new Basis(layerWide ? kvHeads : 1, headDim, kvHeads * headDim));
    }

    private double[][] orthogonal(Random random) {
        double[][] q = new double[n][n];
        for (int i = 0; i < n; ++i) {
            q[i][i] = 1;
        }
        for (int r = 0; r < REFLECTIONS; ++r) {
            double[] v = random.doubles(n, -1, 1).toArray();
            double square = dot(v, v);
            for (double[] row : q) {
                double factor = 2 * dot(row, v) / square;
                for (int c = 0; c < n; ++c) {
                    row[c] -= factor * v[c];
                }
            }
        }
        return q;
    }

    private double[] factors(Random random) {
        return random.doubles(n, 0.5, 2).toArray();
    }

    private void fill(double[][] q, double[] factors, int offset) {
        for (int place = 0; place < n; ++place) {
            for (int c = 0; c < n; ++c) {
                forward[offset + place * n + c] = (float) (q[place][c] * factors[c]);
                inverse[offset + c * n + place] = (float) (q[place][c] / factors[c]);
            }
        }
    }

    private static double dot(double[] a, double[] b) {
        double sum = 0;
        for (int i = 0; i < a.length; ++i) {
            sum += a[i] * b[i];
        }
        return sum;
    }

    /** The columns of all groups' matrices, which are stored by rows. */
    private double[][] columns(float[] matrices, int channels) {
        double[][] columns = new double[channels][n];
        for (int i = 0; i < channels; ++i) {
            for (int c = 0; c < n; ++c) {
                columns[i / n * n + c][i % n] = matrices[i * n + c];
            }
        }
        return columns;
    }

    /** Heads that the basis covers. */
    int heads() {
        return heads;
    }

    /** FP32 [groups, n places, n channels]. */
    float[] forward() {
        return forward;
    }

    /** FP32 [groups, n channels, n places]. */
    float[] inverse() {
        return inverse;
    }

    double[] forward(double[] x) {
        return multiply(forwardColumns, x);
    }

    double[] backward(double[] places) {
        return multiply(inverseColumns, places);
    }

    /** For each place the sum of |basis x|, which errors of sums are measured against. */
    double[] magnitudes(double[] x) {
        double[] out = new double[x.length];
        for (int c = 0; c < x.length; ++c) {
            for (int i = 0; i < n; ++i) {
                out[c / n * n + i] += Math.abs(forwardColumns[c][i] * x[c]);
            }
        }
        return out;
    }

    private double[] multiply(double[][] columns, double[] x) {
        double[] out = new double[x.length];
        double[] sum = new double[n];
        for (int first = 0; first < x.length; first += n) {
            java.util.Arrays.fill(sum, 0);
            for (int c = first; c < first + n; ++c) {
                double[] column = columns[c];
                double factor = x[c];
                if (factor != 0) {
                    for (int i = 0; i < n; ++i) {
                        sum[i] += column[i] * factor;
                    }
                }
            }
            System.arraycopy(sum, 0, out, first, n);
        }
        return out;
    }
}
