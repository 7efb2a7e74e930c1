/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Map;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What a calibrated cache hands to the operators: the calibration, waves and levels. */
class CalibratedParamsTest {

    // Byte offsets of SideParams.
    private static final int KEYS = BoundaryErrorTest.KEYS;
    private static final int VALUES = BoundaryErrorTest.VALUES;
    private static final int BITS = BoundaryErrorTest.BITS;
    private static final int ROTATION_HEADS = BoundaryErrorTest.ROTATION_HEADS;
    private static final int ORDER_OFFSET = BoundaryErrorTest.ORDER_OFFSET;
    private static final int MEAN_OFFSET = 28;
    private static final int STEPS_OFFSET = 32;
    private static final int LEVELS_OFFSET = 36;
    private static final int BASIS_HEADS = 40;
    private static final int BASIS_OFFSET = 44;
    private static final int INVERSE_OFFSET = 48;
    private static final int WAVE_OFFSET = 52;
    private static final int WIDTHS = 64;

    private static final int PRE_ROPE = 32;
    private static final int STATIC = 3;
    private static final int NORM = 4;

    @ParameterizedTest
    @MethodSource("ai.djl.kvquant.tests.contract.SequenceContractTest#calibratedCaches")
    void calibrationsArePackedAsDocumented(Map<String, String> options) {
        Side keys = Sequences.staticKeys(options);
        StaticCodes codes = keys.codes();
        int channels = codes.mean().length;
        ByteBuffer packed = params(options);
        assertEquals(STATIC, packed.getInt(KEYS));
        assertEquals(0, packed.getInt(KEYS + ROTATION_HEADS));
        assertEquals(codes.basis() == null ? 0 : 1, packed.getInt(PRE_ROPE));
        assertArrayEquals(codes.mean(), floats(packed, KEYS + MEAN_OFFSET, channels));
        assertArrayEquals(codes.steps(), floats(packed, KEYS + STEPS_OFFSET, 2 * channels));
        for (int i = 0; i < StaticCodes.RUNS; ++i) {
            assertEquals(codes.widths()[i], packed.get(KEYS + WIDTHS + i));
        }
        if (codes.basis() == null) {
            assertEquals(0, packed.getInt(KEYS + BASIS_HEADS));
            int offset = packed.getInt(KEYS + ORDER_OFFSET);
            for (int place = 0; place < channels; ++place) {
                assertEquals(keys.order()[place], packed.getShort(offset + 2 * place));
            }
        } else {
            float[] forward = codes.basis().forward();
            float[] inverse = codes.basis().inverse();
            assertEquals(codes.basis().heads(), packed.getInt(KEYS + BASIS_HEADS));
            assertEquals(0, packed.getInt(KEYS + ORDER_OFFSET));
            assertArrayEquals(forward, floats(packed, KEYS + BASIS_OFFSET, forward.length));
            assertArrayEquals(inverse, floats(packed, KEYS + INVERSE_OFFSET, inverse.length));
        }
    }

    /** Waves within 2e-6 of cosines and sines, for less work than without. */
    @ParameterizedTest
    @ValueSource(strings = {"int2", "int8/fp16"})
    void wavesAreThoseOfRope(String dtype) {
        ByteBuffer packed = params(Map.of("kv_cache_dtype", dtype));
        double[] frequencies = Scenario.rope(Sequences.HEAD_DIM, 0).inverseFrequencies;
        float[] sizes = floats(packed, KEYS + WAVE_OFFSET, 2);
        int fast = (int) sizes[0];
        int terms = (int) sizes[1];
        int slow = frequencies.length - fast;
        assertTrue(terms > 0 && 2 * fast + terms < frequencies.length, fast + " " + terms);
        float[] table = floats(packed, KEYS + WAVE_OFFSET, 2 + terms * (64 + 2 * slow));
        for (int i = 0; i < slow; ++i) {
            for (int j = 0; j < 64; ++j) {
                double cos = 0;
                double sin = 0;
                for (int t = 0; t < terms; ++t) {
                    int weights = 2 + terms * 64 + 2 * t * slow + i;
                    cos += (double) table[2 + t * 64 + j] * table[weights];
                    sin += (double) table[2 + t * 64 + j] * table[weights + slow];
                }
                assertEquals(Math.cos(j * frequencies[fast + i]), cos, 2e-6);
                assertEquals(Math.sin(j * frequencies[fast + i]), sin, 2e-6);
            }
        }
    }

    /** Their step is the one by which the nearest multiples fit a normal distribution best. */
    @ParameterizedTest
    @ValueSource(ints = {2, 3, 4})
    void levelsAreTheBestEquallySpacedOnes(int bits) {
        float[] levels = levels("fp16/int" + bits, bits);
        double step = levels[1] - levels[0];
        double product = 0;
        double square = 0;
        for (double x = 5e-5; x < 10; x += 1e-4) {
            double multiple = Math.min(Math.floor(x / step) + 0.5, 0.5 * (levels.length - 1));
            double density = Math.exp(-x * x / 2);
            product += density * x * multiple;
            square += density * multiple * multiple;
        }
        assertEquals(product / square, step, 1e-3);
        for (int i = 0; i < levels.length; ++i) {
            assertEquals(step * (i - 0.5 * (levels.length - 1)), levels[i], 1e-4);
        }
    }

    @ParameterizedTest
    @ValueSource(ints = 8)
    void manyLevelsAreEquallySpacedAroundZero(int bits) {
        float[] levels = levels("fp16/int" + bits, bits);
        for (int i = 0; i < levels.length; ++i) {
            assertEquals(levels[255] * (2.0 * i / 255 - 1), levels[i], 1e-6);
        }
        assertTrue(levels[255] > 4 && levels[255] < 6);
    }

    private static float[] levels(String dtype, int bits) {
        ByteBuffer packed = params(Map.of("kv_cache_dtype", dtype));
        assertEquals(NORM, packed.getInt(VALUES));
        assertEquals(bits, packed.getInt(VALUES + BITS));
        assertEquals(1, packed.getInt(VALUES + ROTATION_HEADS));
        return floats(packed, VALUES + LEVELS_OFFSET, 1 << bits);
    }

    private static ByteBuffer params(Map<String, String> options) {
        try (Sequences on = new Sequences(options)) {
            return ByteBuffer.wrap(on.params()).order(ByteOrder.LITTLE_ENDIAN);
        }
    }

    /** The array whose offset stands at a place of the header. */
    private static float[] floats(ByteBuffer packed, int place, int count) {
        float[] out = new float[count];
        packed.slice(packed.getInt(place), 4 * count)
                .order(ByteOrder.LITTLE_ENDIAN)
                .asFloatBuffer()
                .get(out);
        return out;
    }
}
