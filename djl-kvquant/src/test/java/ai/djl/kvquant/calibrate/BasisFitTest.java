/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.Calibration;
import java.util.Arrays;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class BasisFitTest {

    private static final int TOKENS = 6000;
    private static final int HEAD_DIM = 32;
    private static final int PER_KV_HEAD = 2;
    private static final int RUNS = 16;
    private static final double BITS = 2;

    /** A calibration, and what the definition makes of it. */
    private record Fitted(TinySamples samples, Calibration calibration, int n) {

        static Fitted of(int kvHeads, boolean layerWide) {
            TinySamples samples = correlated(kvHeads);
            Calibration calibration = samples.fitted(new BasisFit(BITS, layerWide, 0));
            return new Fitted(samples, calibration, layerWide ? kvHeads * HEAD_DIM : HEAD_DIM);
        }

        float[] get(String name) {
            return calibration.get(0, name);
        }

        int channels() {
            return samples.channels();
        }

        /** Rows of n elements times the matching part of a vector. */
        double[] times(float[] rows, double[] x) {
            double[] product = new double[channels()];
            for (int i = 0; i < product.length; ++i) {
                for (int j = 0; j < n; ++j) {
                    product[i] += rows[i * n + j] * x[i / n * n + j];
                }
            }
            return product;
        }

        /** {@code [tokens][places]}. */
        double[][] latents() {
            float[] basis = get("keys.basis");
            double[][] latents = samples.centred(get("keys.mean"));
            for (int t = 0; t < latents.length; ++t) {
                latents[t] = times(basis, latents[t]);
            }
            return latents;
        }
    }

    /** Keys and queries whose channels are correlated over all heads, of moderate condition. */
    static TinySamples correlated(int kvHeads) {
        Random random = new Random(17 + kvHeads);
        int channels = kvHeads * HEAD_DIM;
        double[][] ofKeys = mixing(random, channels);
        double[][] ofQueries = mixing(random, PER_KV_HEAD * channels);
        double[] mean = random.doubles(channels, -5, 5).toArray();
        float[][] keys = new float[TOKENS][];
        float[][] queries = new float[TOKENS][];
        for (int t = 0; t < TOKENS; ++t) {
            keys[t] = mixed(ofKeys, random);
            queries[t] = mixed(ofQueries, random);
            for (int c = 0; c < channels; ++c) {
                keys[t][c] += (float) mean[c];
            }
        }
        double[] frequencies = TinySamples.usualFrequencies(HEAD_DIM);
        return new TinySamples(kvHeads, HEAD_DIM, frequencies, queries, keys);
    }

    private static double[][] mixing(Random random, int n) {
        double[][] matrix = new double[n][n];
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j < n; ++j) {
                matrix[i][j] = 0.3 * random.nextGaussian() / Math.sqrt(n);
            }
            matrix[i][i] += 0.8 + 1.5 * random.nextDouble();
        }
        return matrix;
    }

    private static float[] mixed(double[][] matrix, Random random) {
        double[] independent =
                random.doubles(matrix.length).map(u -> random.nextGaussian()).toArray();
        float[] mixed = new float[matrix.length];
        for (int i = 0; i < mixed.length; ++i) {
            double sum = 0;
            for (int j = 0; j < mixed.length; ++j) {
                sum += matrix[i][j] * independent[j];
            }
            mixed[i] = (float) sum;
        }
        return mixed;
    }

    @ParameterizedTest
    @CsvSource({"1,false", "3,false", "1,true", "3,true"})
    void basisTimesInverseIsTheIdentity(int kvHeads, boolean layerWide) {
        Fitted fitted = Fitted.of(kvHeads, layerWide);
        int n = fitted.n();
        long[] shape = {fitted.channels(), n};
        assertArrayEquals(shape, fitted.calibration().shape(0, "keys.basis"));
        assertArrayEquals(shape, fitted.calibration().shape(0, "keys.inverse"));
        float[] basis = fitted.get("keys.basis");
        float[] inverse = fitted.get("keys.inverse");
        for (int c = 0; c < fitted.channels(); ++c) {
            double[] unit = new double[fitted.channels()];
            unit[c] = 1;
            assertArrayEquals(unit, fitted.times(basis, fitted.times(inverse, unit)), 1e-3);
        }
    }

    @ParameterizedTest
    @CsvSource({"1,false", "3,false", "1,true", "3,true"})
    void latentsAreUncorrelatedAndDescend(int kvHeads, boolean layerWide) {
        Fitted fitted = Fitted.of(kvHeads, layerWide);
        double[][] latents = fitted.latents();
        int n = fitted.n();
        for (int first = 0; first < fitted.channels(); first += n) {
            double[][] moments = new double[n][n];
            for (double[] row : latents) {
                addOuter(moments, row, first, 1.0 / TOKENS);
            }
            for (int i = 0; i < n; ++i) {
                for (int j = 0; j < i; ++j) {
                    double correlation = moments[i][j] / Math.sqrt(moments[i][i] * moments[j][j]);
                    assertEquals(0, correlation, 1e-2, "places " + i + " and " + j);
                }
                if (i % HEAD_DIM > 0) {
                    assertTrue(moments[i][i] <= 1.0001 * moments[i - 1][i - 1], "place " + i);
                }
            }
        }
    }

    /** Heads get equal shares of one basis: their largest latents are neighbours in rank. */
    @Test
    void oneBasisIsDealtToTheHeadsInTurn() {
        int kvHeads = 3;
        Fitted fitted = Fitted.of(kvHeads, true);
        double[] variances = new double[fitted.channels()];
        for (double[] row : fitted.latents()) {
            for (int i = 0; i < variances.length; ++i) {
                variances[i] += row[i] * row[i] / TOKENS;
            }
        }
        double[] ascending = Arrays.stream(variances).sorted().toArray();
        for (int i = 0; i < variances.length; ++i) {
            int rank = i % HEAD_DIM * kvHeads + i / HEAD_DIM;
            double expected = ascending[variances.length - 1 - rank];
            assertEquals(expected, variances[i], 1e-2 * expected, "place " + i);
        }
    }

    /** Unit errors of places cost the same in scores and do not add up: inverse' M inverse = I. */
    @ParameterizedTest
    @CsvSource({"1,false", "3,false", "1,true", "3,true"})
    void errorsOfAllPlacesMatterAlike(int kvHeads, boolean layerWide) {
        Fitted fitted = Fitted.of(kvHeads, layerWide);
        TinySamples samples = fitted.samples();
        double[][][] metrics = new double[kvHeads][HEAD_DIM][HEAD_DIM];
        for (int t = 0; t < TOKENS; ++t) {
            double[] turned = samples.turned(TinySamples.doubles(samples.queries()[t]), t);
            for (int q = 0; q < samples.heads(); ++q) {
                double weight = 1.0 / TOKENS / PER_KV_HEAD;
                addOuter(metrics[q / PER_KV_HEAD], turned, q * HEAD_DIM, weight);
            }
        }
        double scale =
                IntStream.range(0, fitted.channels())
                        .mapToDouble(i -> metrics[i / HEAD_DIM][i % HEAD_DIM][i % HEAD_DIM])
                        .average()
                        .orElseThrow();
        float[] inverse = fitted.get("keys.inverse");
        int n = fitted.n();
        for (int first = 0; first < fitted.channels(); first += n) {
            for (int a = 0; a < n; ++a) {
                for (int b = 0; b <= a; ++b) {
                    double cost = 0;
                    for (int i = 0; i < n; ++i) {
                        double[] row = metrics[(first + i) / HEAD_DIM][i % HEAD_DIM];
                        int head = i / HEAD_DIM * HEAD_DIM;
                        for (int j = 0; j < HEAD_DIM; ++j) {
                            cost +=
                                    inverse[(first + i) * n + a]
                                            * row[j]
                                            * inverse[(first + head + j) * n + b];
                        }
                    }
                    // the mean eigenvalue is 1, with a floor of 1 %
                    double expected = a == b ? scale : 0;
                    assertEquals(expected, cost, 0.05 * scale, "places " + a + " and " + b);
                }
            }
        }
    }

    /** With gradients g: inverse' E[g g'] inverse = I but for a scale, over all heads if wanted. */
    @ParameterizedTest
    @CsvSource({"1,false", "3,false", "1,true", "3,true"})
    void gradientsDecideHowMuchErrorsMatter(int kvHeads, boolean layerWide) {
        Fitted fitted = Fitted.of(kvHeads, layerWide);
        float[][] gradients = gradients(fitted.channels(), 1e-6f);
        Calibration calibration =
                fitted.samples().fitted(new BasisFit(BITS, layerWide, 0), gradients);
        double[][] moments = new double[fitted.channels()][fitted.channels()];
        for (float[] row : gradients) {
            addOuter(moments, TinySamples.doubles(row), 0, 1.0 / TOKENS);
        }
        double trace = 0;
        for (int i = 0; i < moments.length; ++i) {
            trace += moments[i][i];
        }
        float[] inverse = calibration.get(0, "keys.inverse");
        int n = fitted.n();
        for (int first = 0; first < fitted.channels(); first += n) {
            for (int a = 0; a < n; ++a) {
                for (int b = 0; b <= a; ++b) {
                    double cost = 0;
                    for (int i = 0; i < n; ++i) {
                        for (int j = 0; j < n; ++j) {
                            cost +=
                                    inverse[(first + i) * n + a]
                                            * moments[first + i][first + j]
                                            * inverse[(first + j) * n + b];
                        }
                    }
                    // the mean eigenvalue is 1, with a floor of 1 %
                    double expected = (a == b ? 1 : 0) * trace / fitted.channels();
                    assertEquals(
                            expected,
                            cost,
                            0.06 * trace / fitted.channels(),
                            "places " + a + " and " + b);
                }
            }
        }
    }

    /** Losses of other texts have gradients of other sizes. */
    @Test
    void theScaleOfGradientsDoesNotMatter() {
        TinySamples samples = correlated(3);
        BasisFit fit = new BasisFit(BITS, true, 0);
        Calibration small = samples.fitted(fit, gradients(samples.channels(), 1e-6f));
        Calibration large = samples.fitted(fit, gradients(samples.channels(), 1e3f));
        float[] expected = large.get(0, "keys.noise");
        float[] actual = small.get(0, "keys.noise");
        for (int c = 0; c < expected.length; ++c) {
            assertEquals(expected[c], actual[c], 1e-3f * expected[c], "channel " + c);
        }
        assertArrayEquals(large.get(0, "keys.widths"), small.get(0, "keys.widths"));
    }

    @Test
    void gradientsOfZeroSayNothing() {
        TinySamples samples = correlated(1);
        float[][] none = new float[TOKENS][samples.channels()];
        BasisFit fit = new BasisFit(BITS, false, 0);
        Exception e = assertThrows(IllegalStateException.class, () -> samples.fitted(fit, none));
        assertTrue(e.getMessage().contains("without gradients"), e.getMessage());
    }

    /** Correlated over all heads. */
    private static float[][] gradients(int channels, float scale) {
        Random random = new Random(channels);
        double[][] mixing = mixing(random, channels);
        float[][] gradients = new float[TOKENS][];
        for (int t = 0; t < TOKENS; ++t) {
            gradients[t] = mixed(mixing, random);
            for (int c = 0; c < channels; ++c) {
                gradients[t][c] *= scale;
            }
        }
        return gradients;
    }

    private static void addOuter(double[][] sum, double[] row, int first, double weight) {
        for (int i = 0; i < sum.length; ++i) {
            for (int j = 0; j < sum.length; ++j) {
                sum[i][j] += weight * row[first + i] * row[first + j];
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"1,false", "3,false", "1,true", "3,true"})
    void noiseIsTheErrorOfDecodedKeys(int kvHeads, boolean layerWide) {
        Fitted fitted = Fitted.of(kvHeads, layerWide);
        float[] widths = fitted.get("keys.widths");
        assertEquals(BITS * RUNS, IntStream.range(0, RUNS).mapToDouble(i -> widths[i]).sum());
        assertEquals(RUNS, widths.length);
        float[] steps = fitted.get("keys.steps");
        float[] inverse = fitted.get("keys.inverse");
        double[][] latents = fitted.latents();
        double[][] centred = fitted.samples().centred(fitted.get("keys.mean"));
        double[] errors = new double[fitted.channels()];
        for (int t = 0; t < TOKENS; ++t) {
            double[] y = latents[t];
            for (int p = 0; p < y.length; ++p) {
                int width = (int) widths[p % HEAD_DIM / (HEAD_DIM / RUNS)];
                y[p] = TinySamples.coded(y[p], steps[2 * p], steps[2 * p + 1], width);
            }
            double[] decoded = fitted.times(inverse, y);
            for (int c = 0; c < errors.length; ++c) {
                double error = decoded[c] - centred[t][c];
                errors[c] += error * error / TOKENS;
            }
        }
        float[] noise = fitted.get("keys.noise");
        int half = HEAD_DIM / 2;
        for (int c = 0; c < noise.length; ++c) {
            if (c % HEAD_DIM < half) {
                assertEquals(noise[c], noise[c + half], "pair of channel " + c);
                double expected = (errors[c] + errors[c + half]) / 2;
                assertEquals(expected, noise[c], 0.05 * expected, "channel " + c);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"1,false", "3,true"})
    void theMeanIsThatOfKeys(int kvHeads, boolean layerWide) {
        Fitted fitted = Fitted.of(kvHeads, layerWide);
        double[] mean = TinySamples.doubles(fitted.get("keys.mean"));
        assertArrayEquals(fitted.samples().keyMean(), mean, 1e-3);
    }
}
