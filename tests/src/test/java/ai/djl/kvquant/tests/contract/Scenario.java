/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.Random;

/**
 * A case carried out: prompts appended, one more token per sequence appended and not yet committed.
 */
final class Scenario implements AutoCloseable {

    private static final Map<Integer, Rope> ROPES = new HashMap<>();
    private static final int POSITIONS = 4160;

    final Case point;
    final Layer layer;
    final CacheState state;
    final Inputs inputs;
    final float[] decoded;

    /** The prompts appended in one call. */
    Scenario(Case point) {
        this(point, rope(point.headDim(), 0), Integer.MAX_VALUE);
    }

    /** The prompts appended in chunks. */
    Scenario(Case point, Rope rope, int chunk) {
        this(point, point.layer(), rope, chunk);
    }

    /** The prompts appended in chunks to the cache of another layer than the case's. */
    Scenario(Case point, Layer layer, Rope rope, int chunk) {
        this.point = point;
        this.layer = layer;
        inputs = new Inputs(layer, point.kind(), point.seed());
        int[] lengths = point.lengths();
        int[] capacities = Arrays.stream(lengths).map(n -> n + 1).toArray();
        Random shuffle = point.pages() == Case.Pages.ASCENDING ? null : new Random(point.seed());
        byte poison = CacheState.POISONS[point.seed() / 2 % 2];
        state = new CacheState(layer, rope, capacities, point.seed() % 3, poison, shuffle);
        for (int b = 1; b < point.batch(); ++b) {
            state.sharePrefix(b, point.shared(b));
        }
        for (long begin = 0; begin == 0 || begin < max(lengths); begin += chunk) {
            prefill((int) begin, (int) Math.min(begin + chunk, POSITIONS), lengths);
        }
        float[][] last = new float[point.batch()][];
        for (int b = 0; b < point.batch(); ++b) {
            last[b] = rows(b, lengths[b], lengths[b] + 1);
        }
        int[] ones = new int[point.batch()];
        Arrays.fill(ones, 1);
        decoded = concat(last);
        state.append(decoded, ones, null);
    }

    private static int max(int[] values) {
        return Arrays.stream(values).max().orElse(0);
    }

    private void prefill(int begin, int end, int[] lengths) {
        int[] counts = new int[point.batch()];
        float[][] prompts = new float[point.batch()][];
        for (int b = 0; b < point.batch(); ++b) {
            counts[b] = Math.max(0, Math.min(lengths[b], end) - begin);
            prompts[b] = rows(b, begin, begin + counts[b]);
        }
        state.append(concat(prompts), counts, point.massive(begin, end));
        state.commit(counts);
    }

    static synchronized Rope rope(int headDim, int shift) {
        return ROPES.computeIfAbsent(
                headDim * 10_000_000 + shift, key -> new Rope(headDim, POSITIONS, shift));
    }

    /** Rows of a sequence; those of a shared prefix are the first sequence's. */
    float[] rows(int b, int begin, int end) {
        int shared = Math.max(begin, Math.min(end, point.shared(b)));
        return concat(inputs.rows(0, begin, shared), inputs.rows(b, shared, end));
    }

    /**
     * The largest relative error of a head of the first sequence's attention as a multiple of the
     * tolerance.
     */
    double error(Oracle oracle) {
        int n = layer.headDim();
        Oracle.Attention expected = oracle.attend(0, point.lengths()[0] + 1, decoded, 0);
        float[] actual = state.attend(decoded);
        double largest = 0;
        for (int h = 0; h < layer.heads(); ++h) {
            double error = Tolerance.relativeError(expected.output(), actual, h * n, h * n, n);
            largest = Math.max(largest, error / Tolerance.ofHead(expected, h * n, n));
        }
        return largest;
    }

    static float[] concat(float[]... parts) {
        float[] all = new float[Arrays.stream(parts).mapToInt(p -> p.length).sum()];
        int offset = 0;
        for (float[] part : parts) {
            System.arraycopy(part, 0, all, offset, part.length);
            offset += part.length;
        }
        return all;
    }

    @Override
    public void close() {
        state.close();
    }
}
