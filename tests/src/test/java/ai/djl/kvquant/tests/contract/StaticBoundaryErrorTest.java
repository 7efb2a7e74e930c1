/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.BITS;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.HEAD_DIM;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.KEYS;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.ORDER_OFFSET;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.ROTATION_HEADS;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.VALUES;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.packed;
import static ai.djl.kvquant.tests.contract.BoundaryErrorTest.params;

import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** Which parameters of static codes and norms the operators refuse, and with which words. */
class StaticBoundaryErrorTest {

    // Byte offsets of SideParams.
    private static final int MEAN_OFFSET = 28;
    private static final int STEPS_OFFSET = 32;
    private static final int LEVELS_OFFSET = 36;
    private static final int BASIS_HEADS = 40;
    private static final int BASIS_OFFSET = 44;
    private static final int INVERSE_OFFSET = 48;
    private static final int WAVE_OFFSET = 52;
    private static final int WIDTHS = 64;

    private static final String OUTSIDE = " lies outside the packed parameters or is not aligned";
    private static final String ONLY_STATIC =
            " have a mean or a basis, which only static codes of keys can have";

    @TestFactory
    Stream<DynamicTest> staticKeysAreChecked() {
        Layer layer = layer(Method.INT_NORM2);
        int end = layer.pack().remaining();
        return Stream.of(
                params(layer, "the mean of keys" + OUTSIDE, KEYS + MEAN_OFFSET, 0),
                params(layer, "the mean of keys" + OUTSIDE, KEYS + MEAN_OFFSET, 100),
                params(layer, "the mean of keys" + OUTSIDE, KEYS + MEAN_OFFSET, -4),
                params(layer, "the mean of keys" + OUTSIDE, KEYS + MEAN_OFFSET, Layer.BYTES + 2),
                params(layer, "the mean of keys" + OUTSIDE, KEYS + MEAN_OFFSET, end - 764),
                params(
                        layer,
                        "the mean of keys" + OUTSIDE,
                        KEYS + MEAN_OFFSET,
                        Integer.MAX_VALUE - 3),
                params(layer, "the steps of keys" + OUTSIDE, KEYS + STEPS_OFFSET, 0),
                params(layer, "the steps of keys" + OUTSIDE, KEYS + STEPS_OFFSET, end - 1532),
                params(layer, "the channel order" + OUTSIDE, KEYS + ORDER_OFFSET, end - 382),
                params(
                        layer,
                        "keys have codes of 5 bits; allowed: 0 to 4, 8",
                        KEYS + WIDTHS,
                        0x02020205),
                params(layer, "keys have codes of 16 bits", KEYS + WIDTHS + 12, 0x10000000),
                params(
                        layer,
                        "keys have static codes, which need a head_dim that is a multiple of 16 and"
                                + " no rotation",
                        KEYS + ROTATION_HEADS,
                        1),
                params(layer, "keys have static codes, which need a head_dim", HEAD_DIM, 72),
                order(layer, "channel 1 stands twice in the order", 0, 1),
                order(
                        layer,
                        "channel 64 of the order is not in the head of its place, 3",
                        3,
                        64,
                        64,
                        3));
    }

    @TestFactory
    Stream<DynamicTest> basesAreChecked() {
        Layer layer = layer(Method.LATENT_NORM2);
        Layer wide = layer(Method.LAYER_LATENT_NORM3);
        return Stream.of(
                params(
                        layer(Method.INT_NORM2),
                        "keys have a basis, which needs keys before RoPE",
                        KEYS + BASIS_HEADS,
                        1),
                params(layer, "keys have a basis over 2 heads; ", KEYS + BASIS_HEADS, 2),
                params(layer, "keys have a basis over -1 heads; ", KEYS + BASIS_HEADS, -1),
                params(
                        wide,
                        "keys have a basis over 4 heads; allowed: 0, 1, 3",
                        KEYS + BASIS_HEADS,
                        4),
                params(layer, "the basis of keys" + OUTSIDE, KEYS + BASIS_OFFSET, 0),
                params(layer, "the basis of keys" + OUTSIDE, KEYS + BASIS_HEADS, 3),
                params(layer, "the inverse basis of keys" + OUTSIDE, KEYS + INVERSE_OFFSET, 0),
                params(
                        wide,
                        "the inverse basis of keys" + OUTSIDE,
                        KEYS + INVERSE_OFFSET,
                        wide.pack().remaining() - 4 * 192 * 192 + 4),
                order(layer, "keys have an order and a basis; allowed: one of them", 0, 0));
    }

    @TestFactory
    Stream<DynamicTest> wavesAreChecked() {
        Layer layer = layer(Method.INT_NORM2);
        int end = layer.pack().remaining();
        return Stream.of(
                params(layer, "the wave table" + OUTSIDE, KEYS + WAVE_OFFSET, 1),
                params(layer, "the wave table" + OUTSIDE, KEYS + WAVE_OFFSET, end - 4),
                waves("the wave table's fast pairs is 33; allowed: 0 to 32", 33, 1),
                waves("the wave table's fast pairs is -1; allowed: 0 to 32", -1, 1),
                waves("the wave table's terms is 17; allowed: 0 to 16", 20, 17),
                waves("the wave table's terms is -1; allowed: 0 to 16", 20, -1),
                waves("the wave table" + OUTSIDE, 0, 16));
    }

    @TestFactory
    Stream<DynamicTest> normsAreChecked() {
        Layer layer = layer(Method.INT_NORM2);
        int end = layer.pack().remaining();
        float[] uneven = Levels.of(8);
        uneven[100] += 0.01f;
        float[] shifted = Levels.of(8);
        IntStream.range(0, shifted.length).forEach(i -> shifted[i] += 0.5f);
        String unequal = "the levels of values are not equally spaced around 0, as those of 8 bits";
        return Stream.of(
                params(layer, "the levels of values" + OUTSIDE, VALUES + LEVELS_OFFSET, 0),
                params(layer, "the levels of values" + OUTSIDE, VALUES + LEVELS_OFFSET, end - 12),
                params(layer, "the levels of values" + OUTSIDE, VALUES + BITS, 8),
                params(layer, "values have 5 bits; allowed: 2, 3, 4, 8", VALUES + BITS, 5),
                params(layer, "values have 0 bits; allowed: 2, 3, 4, 8", VALUES + BITS, 0),
                levels("the levels of values do not ascend", -1, 1, 0, 2),
                levels("the levels of values do not ascend", -1, 0, 0, 1),
                levels("the levels of values do not ascend", -1, 0, 1, Float.NaN),
                levels("the levels of values do not ascend", -1, 0, 1, Float.POSITIVE_INFINITY),
                levels(unequal, uneven),
                levels(unequal, shifted),
                params(
                        layer,
                        "values are rotated over 2 heads; allowed: 0 to 4, a divisor of 3",
                        VALUES + ROTATION_HEADS,
                        2),
                params(
                        layer,
                        "values can only be rotated head by head",
                        VALUES + ROTATION_HEADS,
                        3));
    }

    /** What a format has no use for is refused where some kernel would use it. */
    @TestFactory
    Stream<DynamicTest> fieldsOfOtherFormatsAreRefused() {
        Layer layer = layer(Method.INT_NORM2);
        Layer affine = layer(Method.ROTATEKV4);
        Layer plain = layer(Method.FP16);
        Layer swapped =
                new Layer(
                        3,
                        3,
                        64,
                        0,
                        Layer.Sinks.NONE,
                        0,
                        false,
                        0.125f,
                        layer.values(),
                        layer.values());
        Layer values =
                new Layer(
                        3,
                        3,
                        64,
                        0,
                        Layer.Sinks.NONE,
                        0,
                        false,
                        0.125f,
                        layer.keys(),
                        layer.keys());
        return Stream.of(
                params(layer, "values" + ONLY_STATIC, VALUES + MEAN_OFFSET, Layer.BYTES),
                params(layer, "values" + ONLY_STATIC, VALUES + BASIS_HEADS, 1),
                params(affine, "keys" + ONLY_STATIC, KEYS + MEAN_OFFSET, Layer.BYTES),
                params(affine, "keys" + ONLY_STATIC, KEYS + BASIS_HEADS, 1),
                params(plain, "keys" + ONLY_STATIC, KEYS + MEAN_OFFSET, Layer.BYTES),
                packed("keys can not have norms, values no static codes", swapped.pack()),
                packed("keys can not have norms, values no static codes", values.pack()));
    }

    private static Layer layer(Method method) {
        return Case.sample(
                        method,
                        BoundaryErrorTest.LENGTH,
                        Case.SinkPlace.SCATTERED,
                        BoundaryErrorTest.WINDOW_TOKENS)
                .layer();
    }

    /** Natural order, with other channels at some places: pairs of place and channel. */
    private static DynamicTest order(Layer layer, String message, int... changes) {
        int[] order = IntStream.range(0, layer.channels()).toArray();
        for (int i = 0; i < changes.length; i += 2) {
            order[changes[i]] = changes[i + 1];
        }
        return packed(message, layer.withKeys(layer.keys().withOrder(order)).pack());
    }

    /** A table of zeros that is long enough for 20 fast pairs and 12 terms. */
    private static DynamicTest waves(String message, int fast, int terms) {
        Layer layer = layer(Method.INT_NORM2);
        float[] table = Arrays.copyOf(new float[] {fast, terms}, 2 + 12 * (64 + 2 * 12));
        Side keys = layer.keys().withCodes(layer.keys().codes().withWaves(table));
        return packed(message, layer.withKeys(keys).pack());
    }

    private static DynamicTest levels(String message, float... levels) {
        Layer layer = layer(Method.INT_NORM2);
        ByteBuffer packed = layer.withValues(Side.norm(levels, true)).pack();
        return packed(message, packed);
    }
}
