/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Arrays;
import java.util.Map;
import java.util.stream.IntStream;

/**
 * A calibration that has the sizes of a real one and nothing else: what a cache takes, and how fast
 * it is, can be told without measuring the model.
 */
final class NominalCalibration {

    /** A schedule of 2 bits in the mean, as models get: few channels have most of them. */
    private static final float[] TWO_BITS = {8, 4, 4, 4, 4, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0};

    private NominalCalibration() {}

    /**
     * Makes one.
     *
     * @param layerWide whether a basis of keys, if the method has one, covers all kv heads
     */
    static Calibration of(CacheGeometry geometry, CacheDtype dtype, boolean layerWide) {
        Calibration.Builder builder = new Calibration.Builder(Map.of());
        float[] order = new float[geometry.channels()];
        float[] steps = new float[2 * geometry.channels()];
        Arrays.fill(steps, 1f);
        IntStream.range(0, order.length).forEach(i -> order[i] = i);
        float[] basis = basis(geometry, dtype, layerWide);
        for (int layer = 0; layer < geometry.numLayers(); ++layer) {
            builder.put(layer, "keys.mean", new float[geometry.channels()]);
            builder.put(layer, "keys.noise", new float[geometry.channels()]);
            if (basis == null) {
                builder.put(layer, "keys.order", order);
            } else {
                builder.put(layer, "keys.basis", basis);
                builder.put(layer, "keys.inverse", basis);
            }
            builder.put(layer, "keys.steps", steps);
            builder.put(layer, "keys.widths", widths(dtype.keyBits()));
            if (dtype.keyMethod() == CacheMethod.KVQUANT) {
                putLevels(builder, layer, "keys", (int) dtype.keyBits());
            }
            if (dtype.valueMethod() == CacheMethod.KVQUANT) {
                putLevels(builder, layer, "values", (int) dtype.valueBits());
            }
        }
        return builder.build();
    }

    /** Identities, [kv heads / heads, n, n] with n = heads * headDim; null without a basis. */
    private static float[] basis(CacheGeometry geometry, CacheDtype dtype, boolean layerWide) {
        if (dtype.keyMethod() != CacheMethod.LATENT && dtype.keyMethod() != CacheMethod.SVDQ) {
            return null;
        }
        int size = layerWide ? geometry.channels() : geometry.headDim();
        float[] basis = new float[geometry.channels() * size];
        IntStream.range(0, geometry.channels()).forEach(i -> basis[i * size + i % size] = 1f);
        return basis;
    }

    /** Equally spaced levels from -1 to 1. */
    private static void putLevels(Calibration.Builder builder, int layer, String side, int bits) {
        float[] levels = new float[1 << bits];
        IntStream.range(0, levels.length)
                .forEach(i -> levels[i] = 2f * i / (levels.length - 1) - 1);
        builder.put(layer, side + ".levels", levels);
        builder.put(layer, side + ".read_levels", levels);
    }

    /** Widths of the given mean. */
    private static float[] widths(double bits) {
        if (bits == 2) {
            return TWO_BITS.clone();
        }
        float[] widths = new float[StaticFormat.RUNS];
        int left = (int) Math.round(bits * widths.length);
        for (int i = 0; i < widths.length; ++i) {
            double mean = (double) left / (widths.length - i);
            widths[i] = mean > 4 ? 8 : mean > 2 ? 4 : mean > 1 ? 2 : mean > 0 ? 1 : 0;
            left -= (int) widths[i];
        }
        return widths;
    }
}
