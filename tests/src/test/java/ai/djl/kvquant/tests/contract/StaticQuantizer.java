/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;

/**
 * Static codes by their definition: the mean is subtracted, what is stored after RoPE is turned,
 * channels become places, and code = round((x - start) / step), limited to the codes of the width.
 *
 * <p>A code may differ where x, which the library computes in fp32, lies within its error from a
 * boundary; nowhere else.
 */
final class StaticQuantizer {

    private static final double BOUNDARY = 1e-5;

    /** Error of fp32 sums of few terms against the sum of magnitudes. */
    private static final double FP32 = 3e-7;

    private final PageFormat format;
    private final StaticCodes codes;
    private long checked;
    private long deviations;

    StaticQuantizer(PageFormat format) {
        this.format = format;
        codes = format.side.codes();
    }

    long codes() {
        return checked;
    }

    long deviations() {
        return deviations;
    }

    /**
     * What is wrong with the stored form of a key; null: nothing.
     *
     * @param k the key as projected, [channels]
     * @param rope turns the key before it is stored; null: does not
     */
    String problem(double[] k, Rope rope, int token, ByteBuffer page) {
        double[] centred = codes.centred(k);
        double[] magnitudes = magnitudes(k);
        if (rope != null) {
            rope.turn(centred, token);
            magnitudes = turned(magnitudes);
        }
        double[] x = codes.toPlaces(centred, format.side.order());
        magnitudes =
                codes.basis() == null
                        ? codes.toPlaces(magnitudes, format.side.order())
                        : codes.basis().magnitudes(magnitudes);
        for (int place = 0; place < x.length; ++place) {
            if (format.width(place) > 0) {
                int code = format.code(page, token % PageFormat.TOKENS, place);
                String problem = codeProblem(place, x[place], FP32 * magnitudes[place], code);
                if (problem != null) {
                    return problem;
                }
            }
        }
        return null;
    }

    private double[] magnitudes(double[] k) {
        double[] magnitudes = k.clone();
        for (int c = 0; c < k.length; ++c) {
            magnitudes[c] = Math.abs(k[c]) + Math.abs(codes.mean()[c]);
        }
        return magnitudes;
    }

    /** Of each pair that turns, both get the sum. */
    private double[] turned(double[] x) {
        int half = format.layer.headDim() / 2;
        double[] out = new double[x.length];
        for (int c = 0; c < x.length; ++c) {
            out[c] = x[c] + x[c / half % 2 == 0 ? c + half : c - half];
        }
        return out;
    }

    private String codeProblem(int place, double x, double error, int code) {
        double exact = (x - codes.start(place)) / codes.step(place);
        double margin = BOUNDARY + error / codes.step(place);
        ++checked;
        deviations += code == limit(place, exact) ? 0 : 1;
        return code < limit(place, exact - margin) || code > limit(place, exact + margin)
                ? "code " + code + " at place " + place + " instead of " + exact
                : null;
    }

    private double limit(int place, double code) {
        double largest = (1 << format.width(place)) - 1;
        return Math.min(largest, Math.max(0, Math.rint(code)));
    }
}
