/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;

/** RoPE's table in the layout of the operators' rope.h; angles in double precision. */
final class RopeTable {

    private RopeTable() {}

    /**
     * FLOAT32 [64 + n, 2, headDim / 2]: steps of positions 0 to 63, then the bases of every 64th
     * position.
     */
    static NDArray create(NDManager manager, CacheGeometry geometry) {
        int half = geometry.headDim() / 2;
        int bases = TokenLayout.pagesFor(geometry.maxTokens()) + 1;
        int steps = KvCache.PAGE_TOKENS;
        float[] table = new float[(steps + bases) * 2 * half];
        double[] frequencies = geometry.inverseFrequencies();
        for (int pair = 0; pair < half; ++pair) {
            for (int j = 0; j < steps; ++j) {
                table[pair * steps + j] = (float) Math.cos(j * frequencies[pair]);
                table[(half + pair) * steps + j] = (float) Math.sin(j * frequencies[pair]);
            }
            for (int i = 0; i < bases; ++i) {
                double angle = (double) i * steps * frequencies[pair];
                int row = (steps + i) * 2 * half;
                table[row + pair] = (float) Math.cos(angle);
                table[row + half + pair] = (float) Math.sin(angle);
            }
        }
        return manager.create(table, new Shape(steps + bases, 2, half));
    }
}
