/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.BITS;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.KEYS;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.ORDER_OFFSET;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.ROTATION_HEADS;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.VALUES;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.packed;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.params;

import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** Which parameters of codebooks the operators refuse, and with which words. */
class CodebookBoundaryErrorTest {

    // Byte offsets of LayerParams and SideParams.
    private static final int PRE_ROPE = 32;
    private static final int MEAN_OFFSET = 28;
    private static final int STEPS_OFFSET = 32;
    private static final int LEVELS_OFFSET = 36;
    private static final int NOISE_OFFSET = 56;
    private static final int OUTLIERS = 60;

    private static final String OUTSIDE = " lies outside the packed parameters or is not aligned";
    private static final String PLAIN =
            " have a codebook, which allows for no rotation, order or noise";

    @TestFactory
    Stream<DynamicTest> codebooksAreChecked() {
        Layer layer = layer(Method.KVQUANT2);
        int end = layer.pack().remaining();
        return Stream.of(
                params(layer, "the levels of keys" + OUTSIDE, KEYS + LEVELS_OFFSET, 0),
                params(layer, "the levels of values" + OUTSIDE, VALUES + LEVELS_OFFSET, 0),
                params(layer, "the levels of values" + OUTSIDE, VALUES + LEVELS_OFFSET, end - 28),
                params(layer, "the levels of values" + OUTSIDE, VALUES + BITS, 3),
                params(layer, "the steps of keys" + OUTSIDE, KEYS + STEPS_OFFSET, 0),
                params(layer, "the steps of keys" + OUTSIDE, KEYS + STEPS_OFFSET, end - 1532),
                params(
                        layer,
                        "values have a codebook, whose steps are those of tokens",
                        VALUES + STEPS_OFFSET,
                        Layer.BYTES),
                params(layer, "keys have a codebook, which needs keys before RoPE", PRE_ROPE, 0),
                params(layer, "keys have a codebook of 8 bits; allowed: 2, 3, 4", KEYS + BITS, 8),
                params(layer, "values have a codebook of 1 bits", VALUES + BITS, 1),
                params(layer, "keys" + PLAIN, KEYS + ROTATION_HEADS, 1),
                params(layer, "values" + PLAIN, VALUES + ORDER_OFFSET, Layer.BYTES),
                params(layer, "keys" + PLAIN, KEYS + NOISE_OFFSET, Layer.BYTES),
                params(
                        layer,
                        "keys have a mean or a basis, which only static codes",
                        KEYS + MEAN_OFFSET,
                        Layer.BYTES),
                levels("the levels of keys do not ascend", 0, 0, 1, 2),
                levels("the levels of keys do not ascend", 3, 2, 1, 0),
                levels("the levels of keys do not ascend", -1, 0, 1, Float.NaN),
                levels("the levels of keys do not ascend", Float.NEGATIVE_INFINITY, 0, 1, 2));
    }

    @TestFactory
    Stream<DynamicTest> outliersAreChecked() {
        Layer layer = layer(Method.KVQUANT2);
        return Stream.of(
                params(layer, "the outliers of keys is -1; allowed: 0 to 96", KEYS + OUTLIERS, -1),
                params(
                        layer,
                        "the outliers of values is 97; allowed: 0 to 96",
                        VALUES + OUTLIERS,
                        97),
                params(
                        layer(Method.ROTATEKV4),
                        "values have outliers, which only codebooks can have",
                        VALUES + OUTLIERS,
                        1),
                params(
                        layer(Method.FP16),
                        "keys have outliers, which only codebooks can have",
                        KEYS + OUTLIERS,
                        1));
    }

    private static Layer layer(Method method) {
        return Case.sample(
                        method,
                        BoundaryErrorTest.LENGTH,
                        Case.SinkPlace.SCATTERED,
                        BoundaryErrorTest.WINDOW_TOKENS)
                .layer();
    }

    /** Both kinds of levels are checked. */
    private static DynamicTest levels(String message, float... levels) {
        Layer layer = layer(Method.KVQUANT2);
        Codebook codebook = layer.keys().codebook();
        boolean reading = levels[0] == 0;
        Codebook wrong =
                reading
                        ? codebook.withLevels(codebook.levels(), levels)
                        : codebook.withLevels(levels, codebook.readLevels());
        return packed(message, layer.withKeys(Side.codebook(wrong)).pack());
    }
}
