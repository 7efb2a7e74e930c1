/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.Optional;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class LargestLogitsTest {

    private static Optional<int[]> tokens(float[][] rows) {
        try (NDManager manager = NDManager.newBaseManager("PyTorch")) {
            NDArray logits = manager.create(rows);
            return LargestLogits.tokens(logits);
        }
    }

    /** Few values, so that the largest is there many times. */
    @ParameterizedTest
    @ValueSource(ints = {1, 7, 1000, 50000})
    void theFirstOfEqualLogitsCounts(int vocabulary) {
        Random random = new Random(vocabulary);
        float[][] rows = new float[9][vocabulary];
        int[] expected = new int[rows.length];
        for (int row = 0; row < rows.length; ++row) {
            for (int i = 0; i < vocabulary; ++i) {
                rows[row][i] = -1 - random.nextInt(5);
                expected[row] = rows[row][i] > rows[row][expected[row]] ? i : expected[row];
            }
        }
        assertArrayEquals(expected, tokens(rows).orElseThrow());
    }

    @Test
    void zerosOfBothSignsAreEqual() {
        assertArrayEquals(
                new int[] {1, 0},
                tokens(new float[][] {{-1, -0f, 0f}, {0f, -0f, -0f}}).orElseThrow());
    }

    @ParameterizedTest
    @ValueSource(floats = {Float.NaN, Float.POSITIVE_INFINITY})
    void rowsWithoutAFiniteLargestLogitAreLeftToTheCaller(float bad) {
        assertEquals(Optional.empty(), tokens(new float[][] {{1, 2, 3}, {4, bad, 5}}));
    }

    @Test
    void rowsThatExcludeSomeTokensAreFine() {
        float none = Float.NEGATIVE_INFINITY;
        assertArrayEquals(
                new int[] {2}, tokens(new float[][] {{none, -3, -2, none}}).orElseThrow());
        assertEquals(Optional.empty(), tokens(new float[][] {{none, none}}));
    }
}
