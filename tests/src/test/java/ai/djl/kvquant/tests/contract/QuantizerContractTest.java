/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** What is stored in pages, against the definition of each format. */
class QuantizerContractTest {

    /** Codes, of a million, that fp32 may round otherwise than double precision. */
    private static final long RARE = 50;

    @ParameterizedTest
    @EnumSource(Method.class)
    void pagesFollowTheDefinition(Method method) {
        List<String> failures = new ArrayList<>();
        long[] counts = new long[3];
        Cases.pairs(method)
                .forEach(
                        point -> {
                            try (Scenario scenario = new Scenario(point)) {
                                StoredTokens tokens = new StoredTokens(scenario);
                                failures.addAll(tokens.problems());
                                counts[0] += tokens.checked();
                                counts[1] += tokens.codes();
                                counts[2] += tokens.deviations();
                            }
                        });
        if (counts[1] > 0) {
            System.out.printf(
                    "%s: fp32 rounds %d of %d codes otherwise%n", method, counts[2], counts[1]);
        }
        assertTrue(
                failures.isEmpty(), () -> failures.size() + " failures, first " + failures.get(0));
        assertTrue(counts[0] > 100, "too few tokens are stored in pages: " + counts[0]);
        assertTrue(counts[2] * 1_000_000 <= RARE * counts[1], "deviations: " + counts[2]);
    }

    @ParameterizedTest
    @EnumSource(Method.class)
    void pageSizesAreThoseOfTheLayout(Method method) {
        Layer layer = Case.sample(method, 1, Case.SinkPlace.START, 1).layer();
        ByteBuffer params = layer.pack();
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            NDArray tensor = scope.create(params, new Shape(params.remaining()), DataType.UINT8);
            long[] sizes = Kernels.OPERATORS.layout(tensor);
            assertEquals(PageFormat.pageBytes(layer), sizes[0]);
            assertEquals(ExactFormat.bytes(layer), sizes[1]);
        }
    }
}
