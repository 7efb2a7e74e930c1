/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.cache.SvdqSchedule;
import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Against eigenvalues that Jacobi rotations find in double precision. */
class SvdqFitTest {

    private static final int TOKENS = 1500;
    private static final int HEADS = 3;
    private static final int HEAD_DIM = 32;
    private static final int CHANNELS = HEADS * HEAD_DIM;

    private static final TinySamples SAMPLES = samples();
    private static final double[] SPECTRUM = spectrum();

    /** Channels correlated over all heads, with a mean. */
    private static TinySamples samples() {
        Random random = new Random(23);
        double[][] mixing = new double[CHANNELS][CHANNELS];
        for (double[] row : mixing) {
            Arrays.setAll(row, i -> random.nextGaussian() * Math.pow(0.95, i));
        }
        float[][] keys = new float[TOKENS][CHANNELS];
        for (float[] key : keys) {
            double[] source = random.doubles(CHANNELS).map(u -> random.nextGaussian()).toArray();
            for (int c = 0; c < CHANNELS; ++c) {
                double sum = 5 - c % 11;
                for (int i = 0; i < CHANNELS; ++i) {
                    sum += mixing[c][i] * source[i];
                }
                key[c] = (float) sum;
            }
        }
        double[] frequencies = TinySamples.usualFrequencies(HEAD_DIM);
        return new TinySamples(HEADS, HEAD_DIM, frequencies, keys, keys);
    }

    /** Eigenvalues of the keys' covariance, descending. */
    private static double[] spectrum() {
        float[] mean = new float[CHANNELS];
        double[] exact = SAMPLES.keyMean();
        for (int c = 0; c < CHANNELS; ++c) {
            mean[c] = (float) exact[c];
        }
        double[][] covariance = new double[CHANNELS][CHANNELS];
        for (double[] key : SAMPLES.centred(mean)) {
            for (int i = 0; i < CHANNELS; ++i) {
                for (int j = 0; j < CHANNELS; ++j) {
                    covariance[i][j] += key[i] * key[j] / TOKENS;
                }
            }
        }
        for (int sweep = 0; sweep < 12; ++sweep) {
            for (int p = 0; p < CHANNELS; ++p) {
                for (int q = p + 1; q < CHANNELS; ++q) {
                    annihilate(covariance, p, q);
                }
            }
        }
        double[] ascending = new double[CHANNELS];
        Arrays.setAll(ascending, i -> covariance[i][i]);
        Arrays.sort(ascending);
        double[] descending = new double[CHANNELS];
        Arrays.setAll(descending, i -> ascending[CHANNELS - 1 - i]);
        return descending;
    }

    /** A Jacobi rotation after which a[p][q] is 0. */
    private static void annihilate(double[][] a, int p, int q) {
        if (a[p][q] == 0) {
            return;
        }
        double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        double t = Math.copySign(1, theta) / (Math.abs(theta) + Math.hypot(theta, 1));
        double cos = 1 / Math.hypot(t, 1);
        double sin = t * cos;
        for (int i = 0; i < a.length; ++i) {
            double x = a[i][p];
            a[i][p] = cos * x - sin * a[i][q];
            a[i][q] = sin * x + cos * a[i][q];
        }
        for (int i = 0; i < a.length; ++i) {
            double x = a[p][i];
            a[p][i] = cos * x - sin * a[q][i];
            a[q][i] = sin * x + cos * a[q][i];
        }
    }

    private static Calibration fitted(double bits) {
        return SAMPLES.fitted(new SvdqFit(SvdqSchedule.of(bits)));
    }

    private static double[] times(float[] matrix, double[] x) {
        double[] product = new double[CHANNELS];
        for (int i = 0; i < CHANNELS; ++i) {
            for (int j = 0; j < CHANNELS; ++j) {
                product[i] += matrix[i * CHANNELS + j] * x[j];
            }
        }
        return product;
    }

    /** Of each place, in descending order over the layer: place c of all heads, then c + 1. */
    private static int rank(int place) {
        return place % HEAD_DIM * HEADS + place / HEAD_DIM;
    }

    private static int width(float[] widths, int place) {
        return (int) widths[place % HEAD_DIM * widths.length / HEAD_DIM];
    }

    @ParameterizedTest
    @ValueSource(doubles = {2.25, 1.25})
    void eachEighthOfTheSortedSpectrumHasThePapersWidth(double bits) {
        int[] paper = bits == 2.25 ? new int[] {8, 4, 4, 2, 0, 0, 0, 0} : null;
        if (paper == null) {
            paper = new int[] {4, 4, 2, 0, 0, 0, 0, 0};
        }
        Calibration calibration = fitted(bits);
        float[] basis = calibration.get(0, "keys.basis");
        float[] widths = calibration.get(0, "keys.widths");
        double[] variances = new double[CHANNELS];
        for (double[] key : SAMPLES.centred(calibration.get(0, "keys.mean"))) {
            double[] y = times(basis, key);
            for (int place = 0; place < CHANNELS; ++place) {
                variances[place] += y[place] * y[place] / TOKENS;
            }
        }
        int total = 0;
        for (int place = 0; place < CHANNELS; ++place) {
            double expected = SPECTRUM[rank(place)];
            // axes are rounded to fp16, so that a little of the largest leaks into the others
            double allowed = 3e-3 * expected + 1e-8 * SPECTRUM[0];
            assertEquals(expected, variances[place], allowed, "place " + place);
            assertEquals(paper[rank(place) * 8 / CHANNELS], width(widths, place), "place " + place);
            total += width(widths, place);
        }
        assertEquals(bits, (double) total / CHANNELS);
    }

    /** No basis leaves less behind than the eigenvalues that are dropped, and this one no more. */
    @Test
    void whatIsDroppedIsTheTailOfTheSpectrum() {
        Calibration calibration = fitted(2.25);
        float[] basis = calibration.get(0, "keys.basis");
        float[] inverse = calibration.get(0, "keys.inverse");
        double[][] centred = SAMPLES.centred(calibration.get(0, "keys.mean"));
        for (int kept : new int[] {CHANNELS, CHANNELS / 2, 3 * CHANNELS / 8, 5}) {
            double error = 0;
            for (double[] key : centred) {
                double[] y = times(basis, key);
                for (int place = 0; place < CHANNELS; ++place) {
                    y[place] = rank(place) < kept ? y[place] : 0;
                }
                double[] back = times(inverse, y);
                for (int c = 0; c < CHANNELS; ++c) {
                    error += (back[c] - key[c]) * (back[c] - key[c]) / TOKENS;
                }
            }
            double tail = Arrays.stream(SPECTRUM, kept, CHANNELS).sum();
            double all = Arrays.stream(SPECTRUM).sum();
            // axes are rounded to fp16
            assertEquals(tail, error, 1e-3 * tail + 1e-6 * all, kept + " kept");
        }
    }

    /** Decoded keys lose the tail and the codes' errors, which add up: axes are orthogonal. */
    @ParameterizedTest
    @ValueSource(doubles = {2.25, 1.25})
    void errorsOfDecodedKeysAreThoseOfTheirLatents(double bits) {
        Calibration calibration = fitted(bits);
        float[] basis = calibration.get(0, "keys.basis");
        float[] inverse = calibration.get(0, "keys.inverse");
        float[] widths = calibration.get(0, "keys.widths");
        float[] steps = calibration.get(0, "keys.steps");
        double codes = 0;
        double keys = 0;
        double tail = 0;
        for (double[] key : SAMPLES.centred(calibration.get(0, "keys.mean"))) {
            double[] y = times(basis, key);
            for (int place = 0; place < CHANNELS; ++place) {
                int width = width(widths, place);
                double coded =
                        TinySamples.coded(y[place], steps[2 * place], steps[2 * place + 1], width);
                codes += width == 0 ? 0 : (coded - y[place]) * (coded - y[place]) / TOKENS;
                tail += width == 0 ? y[place] * y[place] / TOKENS : 0;
                y[place] = coded;
            }
            double[] back = times(inverse, y);
            for (int c = 0; c < CHANNELS; ++c) {
                keys += (back[c] - key[c]) * (back[c] - key[c]) / TOKENS;
            }
        }
        assertEquals(codes + tail, keys, 2e-3 * keys);
        assertTrue(codes < 0.2 * Arrays.stream(SPECTRUM).sum());
    }

    @Test
    void theInverseIsTheTransposeAndScoresHaveNoBias() {
        Calibration calibration = fitted(2.25);
        float[] basis = calibration.get(0, "keys.basis");
        float[] inverse = calibration.get(0, "keys.inverse");
        for (int i = 0; i < CHANNELS; ++i) {
            for (int j = 0; j < CHANNELS; ++j) {
                assertEquals(basis[i * CHANNELS + j], inverse[j * CHANNELS + i]);
            }
        }
        assertFalse(calibration.has(0, "keys.noise"));
        double[] mean = TinySamples.doubles(calibration.get(0, "keys.mean"));
        assertArrayEquals(SAMPLES.keyMean(), mean, 1e-3);
    }
}
