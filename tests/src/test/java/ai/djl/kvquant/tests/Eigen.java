/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import java.util.Arrays;
import java.util.Comparator;
import java.util.stream.IntStream;

/** Eigenvectors of a symmetric matrix by Jacobi rotations, in double precision. */
final class Eigen {

    private static final int SWEEPS = 12;

    private Eigen() {}

    /** The eigenvectors as rows, in descending order of their eigenvalues. */
    static double[][] axes(double[][] symmetric) {
        int n = symmetric.length;
        double[][] a = Arrays.stream(symmetric).map(double[]::clone).toArray(double[][]::new);
        double[][] vectors = new double[n][n];
        for (int i = 0; i < n; ++i) {
            vectors[i][i] = 1;
        }
        for (int sweep = 0; sweep < SWEEPS; ++sweep) {
            for (int p = 0; p < n; ++p) {
                for (int q = p + 1; q < n; ++q) {
                    rotate(a, vectors, p, q);
                }
            }
        }
        return IntStream.range(0, n)
                .boxed()
                .sorted(Comparator.comparingDouble(i -> -a[i][i]))
                .map(i -> vectors[i])
                .toArray(double[][]::new);
    }

    /** Makes a[p][q] 0. */
    private static void rotate(double[][] a, double[][] vectors, int p, int q) {
        if (a[p][q] == 0) {
            return;
        }
        double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        double t = Math.copySign(1, theta) / (Math.abs(theta) + Math.hypot(theta, 1));
        double cos = 1 / Math.hypot(t, 1);
        double sin = t * cos;
        for (double[] row : a) {
            double x = row[p];
            row[p] = cos * x - sin * row[q];
            row[q] = sin * x + cos * row[q];
        }
        mix(a[p], a[q], cos, sin);
        mix(vectors[p], vectors[q], cos, sin);
    }

    private static void mix(double[] p, double[] q, double cos, double sin) {
        for (int i = 0; i < p.length; ++i) {
            double x = p[i];
            p[i] = cos * x - sin * q[i];
            q[i] = sin * x + cos * q[i];
        }
    }
}
