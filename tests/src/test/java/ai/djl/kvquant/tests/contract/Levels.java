/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

/** What codes of values stand for, in norms. */
final class Levels {

    private Levels() {}

    /**
     * The best levels of a normal distribution at 2 bits, 256 equal steps at 8 bits, and between
     * them levels that ascend and are not symmetric, which the format allows.
     */
    static float[] of(int bits) {
        return switch (bits) {
            case 2 -> new float[] {-1.5104f, -0.4528f, 0.4528f, 1.5104f};
            case 3 -> new float[] {-2.1f, -1.4f, -0.8f, -0.3f, 0.2f, 0.7f, 1.3f, 2.2f};
            case 4 -> growing(16);
            default -> uniform(256);
        };
    }

    private static float[] growing(int count) {
        float[] levels = new float[count];
        for (int i = 0; i < count; ++i) {
            double x = (2.0 * i - count + 1) / (count - 1);
            levels[i] = (float) (0.05 + 1.5 * x + 1.2 * x * x * x);
        }
        return levels;
    }

    private static float[] uniform(int count) {
        float[] levels = new float[count];
        for (int i = 0; i < count; ++i) {
            levels[i] = (float) (5.0 * (2 * i - count + 1) / (count - 1));
        }
        return levels;
    }
}
