/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.engine.EngineException;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** The search for the largest entries of a layer's input, against sorting all of them. */
class MassiveEntriesTest {

    @ParameterizedTest
    @ValueSource(ints = {1, 3, 16, 576})
    void theLargestEntriesAreFound(int hidden) {
        SplittableRandom random = new SplittableRandom(hidden);
        int[] starts = {0, 0, 1, 8, 70};
        float[] x = new float[70 * hidden];
        for (int i = 0; i < x.length; ++i) {
            // Few different values: ties, which the earlier row wins.
            x[i] = (float) Math.rint(3 * random.nextGaussian());
        }
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            NDArray input = scope.create(x, new Shape(70, hidden));
            NDList out = Kernels.run(scope, "massive_entries", input, scope.create(starts));
            for (int b = 0; b + 1 < starts.length; ++b) {
                List<Massive.Entry> all = new ArrayList<>();
                for (int i = starts[b] * hidden; i < starts[b + 1] * hidden; ++i) {
                    all.add(new Massive.Entry(Math.abs(x[i]), i / hidden - starts[b]));
                }
                check(Massive.largest(all), out, b);
            }
        }
    }

    private static void check(List<Massive.Entry> expected, NDList out, int b) {
        float[] values = new float[Massive.ENTRIES];
        int[] rows = new int[Massive.ENTRIES];
        Arrays.fill(rows, -1);
        for (int i = 0; i < expected.size(); ++i) {
            values[i] = expected.get(i).value();
            rows[i] = expected.get(i).token();
        }
        int begin = b * Massive.ENTRIES;
        int end = begin + Massive.ENTRIES;
        assertArrayEquals(values, Arrays.copyOfRange(out.get(0).toFloatArray(), begin, end));
        assertArrayEquals(rows, Arrays.copyOfRange(out.get(1).toIntArray(), begin, end));
    }

    @Test
    void wrongArgumentsAreRefused() {
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            NDArray x = scope.zeros(new Shape(2, 8));
            refused(
                    scope,
                    "x must have 2 axes, not 1",
                    scope.zeros(new Shape(8)),
                    scope.create(new int[] {0, 2}));
            refused(scope, "starts must have 1 axes, not 0", x, scope.create(2));
            refused(
                    scope,
                    "starts' entries is 0; allowed: 1 to",
                    x,
                    scope.create(new Shape(0), DataType.INT32));
            refused(
                    scope,
                    "starts has 1 rows at its end but 2 are needed",
                    x,
                    scope.create(new int[] {0, 1}));
        }
    }

    private static void refused(NDManager scope, String message, NDArray x, NDArray starts) {
        EngineException e =
                assertThrows(
                        EngineException.class,
                        () -> Kernels.run(scope, "massive_entries", x, starts));
        String expected = "kvquant::massive_entries: " + message;
        assertTrue(
                e.getMessage().contains(expected), () -> expected + " is not in " + e.getMessage());
        assertEquals(DataType.FLOAT32, x.getDataType());
    }
}
