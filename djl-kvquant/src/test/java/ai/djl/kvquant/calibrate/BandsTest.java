/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.Calibration;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** A basis whose places each mix the channels of one band only. */
class BandsTest {

    private static final int HEAD_DIM = 32;

    /** The band of a channel: RoPE turns c and c + 16 together, a band has width / 2 such pairs. */
    private static int band(int channel, int width) {
        return channel % HEAD_DIM % (HEAD_DIM / 2) / (width / 2);
    }

    @ParameterizedTest
    @CsvSource({"1,16", "3,16", "3,8", "2,32"})
    void whatIsJoinedIsWhatWasSplit(int heads, int width) {
        try (NDManager scope = TinySamples.MANAGER.newSubManager()) {
            double[] matrices = new double[heads * HEAD_DIM * HEAD_DIM];
            Arrays.setAll(matrices, i -> i + 1);
            Shape shape = new Shape(heads, HEAD_DIM, HEAD_DIM);
            NDArray blocks = Bands.split(scope.create(matrices, shape), width);
            Shape split = new Shape(heads * HEAD_DIM / width, width, width);
            assertEquals(split, blocks.getShape());
            double[] joined = Bands.join(blocks, HEAD_DIM).toDoubleArray();
            for (int i = 0; i < joined.length; ++i) {
                boolean inside = band(i / HEAD_DIM, width) == band(i, width);
                assertEquals(inside ? matrices[i] : 0, joined[i], "element " + i);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"1,16", "3,16", "3,8"})
    void placesMixOneBandAndAreInvertible(int kvHeads, int width) {
        TinySamples samples = BasisFitTest.correlated(kvHeads);
        Calibration fitted = samples.fitted(new BasisFit(2, false, width));
        float[] basis = fitted.get(0, "keys.basis");
        float[] inverse = fitted.get(0, "keys.inverse");
        int[] bandAt = new int[kvHeads * HEAD_DIM];
        for (int place = 0; place < bandAt.length; ++place) {
            int row = place * HEAD_DIM;
            int[] mixed = IntStream.range(0, HEAD_DIM).filter(c -> basis[row + c] != 0).toArray();
            int[] bands = IntStream.of(mixed).map(c -> band(c, width)).distinct().toArray();
            assertEquals(1, bands.length, "place " + place);
            assertEquals(width, mixed.length, "place " + place);
            bandAt[place] = bands[0];
        }
        for (int i = 0; i < inverse.length; ++i) {
            int head = i / HEAD_DIM / HEAD_DIM * HEAD_DIM;
            boolean inside = bandAt[head + i % HEAD_DIM] == band(i / HEAD_DIM, width);
            assertEquals(inside, inverse[i] != 0, "element " + i);
        }
        double[] unit = new double[HEAD_DIM];
        for (int c = 0; c < kvHeads * HEAD_DIM; ++c) {
            Arrays.fill(unit, 0);
            for (int place = c / HEAD_DIM * HEAD_DIM, p = 0; p < HEAD_DIM; ++place, ++p) {
                for (int d = 0; d < HEAD_DIM; ++d) {
                    int channel = c / HEAD_DIM * HEAD_DIM + d;
                    unit[d] +=
                            inverse[channel * HEAD_DIM + p]
                                    * basis[place * HEAD_DIM + c % HEAD_DIM];
                }
            }
            double[] expected = new double[HEAD_DIM];
            expected[c % HEAD_DIM] = 1;
            assertArrayEquals(expected, unit, 1e-3, "channel " + c);
        }
    }

    /** What a wider basis can do better than a narrower one is what bands leave out. */
    @Test
    void aBandOfAHeadIsTheHead() {
        TinySamples samples = BasisFitTest.correlated(2);
        double whole = error(samples, 0);
        assertEquals(whole, error(samples, HEAD_DIM), 1e-3 * whole);
        double half = error(samples, HEAD_DIM / 2);
        double quarter = error(samples, HEAD_DIM / 4);
        assertTrue(whole < half && half < quarter, whole + ", " + half + ", " + quarter);
    }

    /** Errors of keys after RoPE as the calibration states them. */
    private static double error(TinySamples samples, int band) {
        float[] noise = samples.fitted(new BasisFit(2, false, band)).get(0, "keys.noise");
        return IntStream.range(0, noise.length).mapToDouble(c -> noise[c]).sum();
    }
}
