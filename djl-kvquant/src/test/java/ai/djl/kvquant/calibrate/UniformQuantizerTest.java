/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

class UniformQuantizerTest {

    @Test
    void codesAreTheNearestLevels() {
        UniformQuantizer quantizer = new UniformQuantizer(-1f, 0.5f, 2);
        assertEquals(0, quantizer.encode(-9f));
        assertEquals(0, quantizer.encode(-0.75f)); // halves go to the even code
        assertEquals(2, quantizer.encode(-0.25f));
        assertEquals(2, quantizer.encode(0.25f));
        assertEquals(3, quantizer.encode(0.26f));
        assertEquals(3, quantizer.encode(Float.POSITIVE_INFINITY));
        assertEquals(-1f, quantizer.decode(0));
        assertEquals(0.5f, quantizer.decode(3));
        assertThrows(IllegalArgumentException.class, () -> quantizer.encode(Float.NaN));
        assertThrows(IllegalArgumentException.class, () -> quantizer.decode(4));
    }

    /** Published optima of uniform quantizers for the normal distribution. */
    @ParameterizedTest
    @CsvSource({
        "1, 1.5958, 0.3634",
        "2, 0.9957, 0.1188",
        "3, 0.5860, 0.03744",
        "4, 0.3352, 0.01154"
    })
    void theNormalDistributionHasItsKnownOptimum(int bits, double step, double error) {
        UniformQuantizer.Fit fit = UniformQuantizer.fit(Shape.NORMAL.samples(200_000, 1), bits);
        assertEquals(step, fit.quantizer().step(), 0.02 * step);
        assertEquals(error, fit.meanSquaredError(), 0.01 * error);
        double half = fit.quantizer().step() * (fit.quantizer().levels() - 1) / 2;
        assertEquals(0, fit.quantizer().start() + half, 0.15 * step);
    }

    /** Few samples with far tails have several local optima, of which the best may be missed. */
    @ParameterizedTest
    @EnumSource
    void noLevelsOfAFineGridAreMuchBetter(Shape shape) {
        double ratio = shape == Shape.HEAVY_TAILS ? 1.1 : 1.02;
        for (long seed = 0; seed < 6; ++seed) {
            float[] samples = shape.samples(300, seed);
            for (int bits = 1; bits <= 4; ++bits) {
                double fitted = UniformQuantizer.fit(samples, bits).meanSquaredError();
                double least = leastOfGrid(samples, bits);
                assertTrue(
                        fitted <= ratio * least,
                        shape + ", " + bits + " bits: " + fitted + ", grid " + least);
            }
        }
    }

    @ParameterizedTest
    @EnumSource
    void theRecipesSearchIsNotBetter(Shape shape) {
        float[] samples = shape.samples(1000, 5);
        for (int bits : new int[] {1, 2, 3, 4, 8}) {
            double fitted = UniformQuantizer.fit(samples, bits).meanSquaredError();
            double recipe = leastOfRecipe(samples, bits);
            assertTrue(
                    fitted <= 1.0001 * recipe,
                    shape + ", " + bits + " bits: " + fitted + ", recipe " + recipe);
        }
    }

    @ParameterizedTest
    @EnumSource
    void theErrorIsThatOfEncodeAndDecode(Shape shape) {
        float[] samples = shape.samples(500, 9);
        for (int bits : new int[] {0, 1, 2, 3, 4, 8}) {
            UniformQuantizer.Fit fit = UniformQuantizer.fit(samples, bits);
            double error = 0;
            for (float y : samples) {
                double difference = y;
                if (bits > 0) {
                    difference -= fit.quantizer().decode(fit.quantizer().encode(y));
                }
                error += difference * difference / samples.length;
            }
            assertEquals(error, fit.meanSquaredError(), 1e-9 * error);
        }
    }

    @ParameterizedTest
    @EnumSource
    void moreBitsErrLess(Shape shape) {
        SortedSamples samples = new SortedSamples(shape.samples(4096, 2));
        double[] errors =
                Arrays.stream(new int[] {0, 1, 2, 3, 4, 8})
                        .mapToDouble(bits -> samples.fit(bits).meanSquaredError())
                        .toArray();
        for (int i = 1; i < errors.length; ++i) {
            assertTrue(errors[i] < errors[i - 1], Arrays.toString(errors));
        }
    }

    @Test
    void bitsSortLikeNumbers() {
        float[] samples = Shape.HEAVY_TAILS.samples(3000, 4);
        samples[5] = Float.NaN;
        samples[6] = -0f;
        samples[7] = 0f;
        samples[8] = Float.NEGATIVE_INFINITY;
        samples[9] = Float.MAX_VALUE;
        samples[10] = -Float.MIN_VALUE;
        float[] expected = samples.clone();
        Arrays.sort(expected);
        float[] sorted = new float[samples.length];
        int[] order = RadixSort.order(samples);
        for (int i = 0; i < sorted.length; ++i) {
            sorted[i] = samples[order[i]];
        }
        assertArrayEquals(expected, sorted);
    }

    @Test
    void theSamplesAreLeftAsTheyWere() {
        float[] samples = {3f, 1f, 2f};
        UniformQuantizer.fit(samples, 2);
        assertEquals("[3.0, 1.0, 2.0]", Arrays.toString(samples));
    }

    @ParameterizedTest
    @ValueSource(ints = {1, 2, 3, 4, 8})
    void equalSamplesAreExact(int bits) {
        for (float[] samples : new float[][] {{-7.3f}, {0f}, {1e30f, 1e30f}, {0f, -0f}}) {
            UniformQuantizer.Fit fit = UniformQuantizer.fit(samples, bits);
            assertEquals(0, fit.meanSquaredError());
            assertEquals(samples[0], fit.quantizer().decode(fit.quantizer().encode(samples[0])));
        }
    }

    @ParameterizedTest
    @ValueSource(ints = {1, 2, 3, 4, 8})
    void twoValuesAreExactUpToRounding(int bits) {
        for (float[] samples :
                new float[][] {{-1f, 2f}, {1f, Math.nextUp(1f)}, {5e-30f, -5e-30f}}) {
            UniformQuantizer.Fit fit = UniformQuantizer.fit(samples, bits);
            double ulp = Math.ulp(Math.max(Math.abs(samples[0]), Math.abs(samples[1])));
            assertTrue(fit.meanSquaredError() <= ulp * ulp, fit.toString());
        }
    }

    @Test
    void stepsStayPositiveForTheSmallestNumbers() {
        UniformQuantizer.Fit fit = UniformQuantizer.fit(new float[] {0f, Float.MIN_VALUE}, 8);
        assertTrue(fit.quantizer().step() >= Float.MIN_NORMAL, fit.toString());
    }

    @Test
    void whatIsNotANumberIsNamed() {
        float[] samples = {1f, 2f, Float.NaN, 3f};
        Exception e =
                assertThrows(
                        IllegalArgumentException.class, () -> UniformQuantizer.fit(samples, 2));
        assertTrue(e.getMessage().contains("Sample 2 is NaN"), e.getMessage());
        samples[2] = Float.NEGATIVE_INFINITY;
        e = assertThrows(IllegalArgumentException.class, () -> UniformQuantizer.fit(samples, 0));
        assertTrue(e.getMessage().contains("Sample 2 is -Infinity"), e.getMessage());
        assertThrows(IllegalArgumentException.class, () -> UniformQuantizer.fit(new float[0], 2));
    }

    @ParameterizedTest
    @ValueSource(ints = {-1, 5, 6, 7, 9, 16})
    void otherWidthsAreRefused(int bits) {
        assertThrows(
                IllegalArgumentException.class,
                () -> UniformQuantizer.fit(new float[] {1f, 2f}, bits));
    }

    @Test
    void badQuantizersAreRefused() {
        for (float step : new float[] {0f, -1f, Float.NaN, Float.POSITIVE_INFINITY}) {
            assertThrows(IllegalArgumentException.class, () -> new UniformQuantizer(0f, step, 2));
        }
        assertThrows(IllegalArgumentException.class, () -> new UniformQuantizer(Float.NaN, 1f, 2));
        assertThrows(IllegalArgumentException.class, () -> new UniformQuantizer(1f, 1f, 0));
    }

    /** Every first and last level of 60 x 60 that lie on either side of the samples' middle. */
    private static double leastOfGrid(float[] samples, int bits) {
        float[] sorted = samples.clone();
        Arrays.sort(sorted);
        float low = sorted[0];
        float high = sorted[sorted.length - 1];
        double middle = sorted[sorted.length / 2];
        double least = Double.POSITIVE_INFINITY;
        for (int i = 0; i < 60; ++i) {
            double first = low + (middle - low) * i / 60;
            for (int j = 1; j <= 60; ++j) {
                double last = middle + (high - middle) * j / 60;
                double step = (last - first) / ((1 << bits) - 1);
                least = Math.min(least, error(samples, first, step, bits));
            }
        }
        return least;
    }

    private static double leastOfRecipe(float[] samples, int bits) {
        float[] sorted = samples.clone();
        Arrays.sort(sorted);
        double centre = 0.5 * (sorted[0] + sorted[sorted.length - 1]);
        double half = 0.5 * (sorted[sorted.length - 1] - sorted[0]);
        double least = Double.POSITIVE_INFINITY;
        for (int i = 0; i < 24; ++i) {
            double part = Math.pow(0.04, i / 23.0);
            double step = 2 * part * half / ((1 << bits) - 1);
            least = Math.min(least, error(samples, part * (centre - half), step, bits));
        }
        return least;
    }

    private static double error(float[] samples, double start, double step, int bits) {
        UniformQuantizer quantizer = new UniformQuantizer((float) start, (float) step, bits);
        double error = 0;
        for (float y : samples) {
            double difference = y - quantizer.decode(quantizer.encode(y));
            error += difference * difference;
        }
        return error / samples.length;
    }
}
