/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;

/**
 * Levels times a norm by their definition, head by head: the code of y is that of the level nearest
 * to y / rms(y), the lower one of two; the norm n, a half, makes the rebuilt vector unbiased:
 * &lt;y, y> = &lt;y, n level>.
 *
 * <p>A code may differ where y, which the library computes in fp32, lies within its error from the
 * middle of two levels; nowhere else.
 */
class NormQuantizer {

    private static final double BOUNDARY = 1e-5;
    private static final double FP32 = 1e-6;
    private static final double TIE = 1e-12;
    private static final double LARGEST_HALF = 65504;

    private final PageFormat format;
    private final float[] levels;
    private final int n;
    private long checked;
    private long deviations;

    NormQuantizer(PageFormat format) {
        this.format = format;
        levels = format.side.levels();
        n = format.layer.headDim();
    }

    final long codes() {
        return checked;
    }

    final long deviations() {
        return deviations;
    }

    /** The norm for given &lt;y, y>, &lt;y, level> and &lt;level, level>. */
    double norm(double square, double product, double levelSquare) {
        return product > 0 ? Math.min(square / product, LARGEST_HALF) : 0;
    }

    /** What is wrong with the stored form of y, [channels] in the stored basis; null: nothing. */
    final String problem(double[] y, ByteBuffer page, int slot) {
        for (int head = 0; head < format.layer.kvHeads(); ++head) {
            String problem = headProblem(y, page, slot, head);
            if (problem != null) {
                return "head " + head + ": " + problem;
            }
        }
        return null;
    }

    private String headProblem(double[] y, ByteBuffer page, int slot, int head) {
        double square = 0;
        double largest = 0;
        for (int c = head * n; c < (head + 1) * n; ++c) {
            square += y[c] * y[c];
            largest = Math.max(largest, Math.abs(y[c]));
        }
        double rms = Math.sqrt(square / n);
        double error = rms > 0 ? FP32 * largest / rms : 0;
        double product = 0;
        double magnitude = 0;
        double levelSquare = 0;
        for (int c = head * n; c < (head + 1) * n; ++c) {
            int code = format.code(page, slot, c);
            String problem = codeProblem(rms > 0 ? y[c] / rms : 0, error, code);
            if (problem != null) {
                return problem;
            }
            product += y[c] * levels[code];
            magnitude += Math.abs(y[c] * levels[code]);
            levelSquare += levels[code] * levels[code];
        }
        return normProblem(
                Half.read(page, format.normOffset(slot, head)),
                norm(square, product, levelSquare),
                FP32 * (1 + magnitude / Math.max(product, 1e-30)));
    }

    private static String normProblem(double actual, double exact, double error) {
        boolean same =
                actual >= Half.round(exact * (1 - error))
                        && actual <= Math.min(LARGEST_HALF, Half.round(exact * (1 + error)));
        return same ? null : "norm " + actual + " instead of " + exact;
    }

    private String codeProblem(double x, double error, int code) {
        ++checked;
        boolean above = code == 0 || x > middle(code);
        boolean below = code == levels.length - 1 || x <= middle(code + 1);
        if (above && below) {
            return null;
        }
        double beyond = above ? x - middle(code + 1) : middle(code) - x;
        // Where y is 0, the reference's rounding errors decide, too.
        deviations += beyond > TIE ? 1 : 0;
        double gap = above ? levels[code + 1] - levels[code] : levels[code] - levels[code - 1];
        return beyond <= BOUNDARY * gap + error ? null : "code " + code + " of " + x;
    }

    /** Between a code's level and the one below. */
    private double middle(int code) {
        return 0.5 * ((double) levels[code - 1] + levels[code]);
    }
}
