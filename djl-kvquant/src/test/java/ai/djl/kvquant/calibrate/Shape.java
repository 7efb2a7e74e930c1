/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import java.util.Random;
import java.util.function.DoubleUnaryOperator;

/** Samples of the shapes that channels of keys take: bells, tails, lopsided ones, rotated means. */
enum Shape {
    NORMAL(z -> z),
    HEAVY_TAILS(z -> z * z * z),
    LOPSIDED(z -> Math.exp(0.7 * z)),
    TWO_HUMPS(z -> 3 * Math.sin(2 * z) + 0.2 * z),
    SHIFTED(z -> 40 + z);

    private final DoubleUnaryOperator ofNormal;

    Shape(DoubleUnaryOperator ofNormal) {
        this.ofNormal = ofNormal;
    }

    float[] samples(int count, long seed) {
        Random random = new Random(seed);
        float[] samples = new float[count];
        for (int i = 0; i < count; ++i) {
            samples[i] = (float) ofNormal.applyAsDouble(random.nextGaussian());
        }
        return samples;
    }
}
