/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.torch.Operators.Variant;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.Set;
import java.util.TreeSet;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** What codebooks promise: outliers come back exactly, ties go to the lowest, nothing overflows. */
class CodebookContractTest {

    private static final float[] LEVELS = {-1, -0.4f, 0.3f, 1};
    private static final double HALF_GAP = 0.35;
    private static final double LARGEST_HALF = 65504;

    @AfterEach
    void restoreVariant() {
        Kernels.OPERATORS.useVariant(Kernels.OPERATORS.bestVariant());
    }

    /** Dense and sparse parts together: outliers to the bit, the rest within half a gap. */
    @ParameterizedTest
    @ValueSource(ints = {0, 1, 2, 3, 20})
    void outliersComeBackExactly(int slots) {
        Case point =
                Case.sample(Method.KVQUANT2, 129, Case.SinkPlace.NONE, 0)
                        .with(7, Case.Pages.SHUFFLED)
                        .withKind(Inputs.Kind.OUTLIERS);
        Rope rope = Scenario.rope(point.headDim(), 0);
        Layer layer = layer(point.layer(), slots);
        try (Scenario scenario = new Scenario(point, layer, rope, Integer.MAX_VALUE)) {
            for (Variant variant : Kernels.variants()) {
                Kernels.OPERATORS.useVariant(variant);
                for (int b = 0; b < point.batch(); ++b) {
                    checkParts(scenario, slots, b);
                }
            }
        }
    }

    private static Layer layer(Layer any, int slots) {
        Codebook values = any.values().codebook().withLevels(LEVELS, LEVELS).withOutliers(slots);
        Codebook keys = any.keys().codebook().withLevels(LEVELS, LEVELS).withOutliers(slots);
        return any.withKeys(Side.codebook(keys)).withValues(Side.codebook(values));
    }

    private static void checkParts(Scenario scenario, int slots, int b) {
        Layer layer = scenario.layer;
        int tokens = scenario.state.lengths[b];
        float[][] read = scenario.state.dequantize(b, 0, tokens);
        PageFormat values = PageFormat.values(layer);
        for (int t = 0; t < tokens; ++t) {
            float[] row = scenario.rows(b, t, t + 1);
            int begin = (layer.heads() + layer.kvHeads()) * layer.headDim();
            ByteBuffer page = scenario.state.page(b, t);
            Set<Integer> outliers = outliers(values, page, t % 64);
            assertEquals(slots, outliers.size());
            double step = Half.read(page, values.scaleOffset(t % 64, 0));
            double start = Half.read(page, values.zeroOffset(t % 64, 0));
            double rounding = Math.scalb(Math.abs(start) + step, -10);
            for (int c = 0; c < layer.channels(); ++c) {
                double allowed = outliers.contains(c) ? 0 : HALF_GAP * step + rounding;
                float value = read[1][at(layer, tokens, t, c)];
                assertEquals(Half.round(row[begin + c]), value, allowed);
            }
        }
        if (tokens > 0) {
            checkFirstKey(scenario, b, read[0], tokens);
        }
    }

    /** RoPE leaves the first key as it is. */
    private static void checkFirstKey(Scenario scenario, int b, float[] read, int tokens) {
        Layer layer = scenario.layer;
        float[] row = scenario.rows(b, 0, 1);
        PageFormat keys = PageFormat.keys(layer);
        Codebook codebook = layer.keys().codebook();
        Set<Integer> outliers = outliers(keys, scenario.state.page(b, 0), 0);
        for (int c = 0; c < layer.channels(); ++c) {
            double x = Half.round(row[layer.heads() * layer.headDim() + c]);
            double nearest = Math.min(1, Math.max(-1, (x - codebook.start(c)) / codebook.step(c)));
            double inside = codebook.start(c) + codebook.step(c) * nearest;
            double actual = read[at(layer, tokens, 0, c)];
            if (outliers.contains(c)) {
                assertEquals(x, actual);
            } else {
                assertEquals(inside, actual, HALF_GAP * codebook.step(c) + 1e-6);
            }
        }
    }

    private static int at(Layer layer, int tokens, int token, int channel) {
        int headDim = layer.headDim();
        return (channel / headDim * tokens + token) * headDim + channel % headDim;
    }

    private static Set<Integer> outliers(PageFormat format, ByteBuffer page, int slot) {
        Set<Integer> channels = new TreeSet<>();
        for (int i = 0; i < format.outliers(); ++i) {
            int channel = format.outlierChannel(page, slot, i);
            if (channel != Codebook.EMPTY) {
                channels.add(channel);
            }
        }
        return channels;
    }

    @Test
    void equalElementsGiveTheLowestChannels() {
        Layer layer = unitLayer(3);
        float[] x = new float[layer.channels()];
        Arrays.fill(x, 5f);
        ByteBuffer page = stored(layer, x, x);
        assertEquals(Set.of(0, 1, 2), outliers(PageFormat.keys(layer), page, 0));
        assertEquals(Set.of(0, 1, 2), outliers(PageFormat.values(layer), page, 0));
        PageFormat values = PageFormat.values(layer);
        assertEquals(0, Half.read(page, values.scaleOffset(0, 0)));
        assertEquals(5, Half.read(page, values.zeroOffset(0, 0)));
    }

    @Test
    void middlesGiveTheLowerLevel() {
        Layer layer = unitLayer(0);
        float[] levels = {-0.75f, -0.25f, 0.25f, 0.75f};
        Layer even =
                layer.withKeys(withLevels(layer.keys(), levels))
                        .withValues(withLevels(layer.values(), levels));
        float[] x = new float[layer.channels()];
        float[] some = {-0.5f, 0, 0.5f, -1, 1, Math.nextUp(0f) + 1e-3f};
        System.arraycopy(some, 0, x, 7, some.length);
        ByteBuffer page = stored(even, x, x);
        int[] codes = {0, 1, 2, 0, 3, 2};
        for (PageFormat format :
                new PageFormat[] {PageFormat.keys(even), PageFormat.values(even)}) {
            int[] actual = new int[codes.length];
            Arrays.setAll(actual, i -> format.code(page, 0, 7 + i));
            assertArrayEquals(codes, actual);
        }
    }

    /** Where one end must be chosen, it is the one whose absence narrows the range more. */
    @ParameterizedTest
    @ValueSource(ints = {-1, 1})
    void theLastOutlierIsTheFartherOne(int sign) {
        Layer layer = unitLayer(1);
        float[] x = new float[layer.channels()];
        for (int c = 0; c < x.length; ++c) {
            x[c] = 0.001f * c;
        }
        x[9] = sign * -3f;
        x[11] = sign * 7f;
        ByteBuffer page = stored(layer, x, x);
        assertEquals(Set.of(11), outliers(PageFormat.values(layer), page, 0));
        assertEquals(Set.of(11), outliers(PageFormat.keys(layer), page, 0));
    }

    @Test
    void thresholdsThemselvesAreInside() {
        Layer layer = unitLayer(3);
        float[] x = new float[layer.channels()];
        x[3] = 1f;
        x[4] = -1f;
        x[5] = 1.0009766f;
        assertEquals(Set.of(5), outliers(PageFormat.keys(layer), stored(layer, x, x), 0));
    }

    @Test
    void whatIsBeyondHalvesIsReadAsTheLargest() {
        Layer layer = unitLayer(3);
        float[] x = new float[layer.channels()];
        x[2] = 1e6f;
        x[3] = Float.NEGATIVE_INFINITY;
        x[4] = Float.NaN;
        for (float far : new float[] {1e6f, Float.POSITIVE_INFINITY}) {
            Arrays.fill(x, 8, 20, far);
            ByteBuffer page = stored(layer, x, x);
            for (PageFormat format :
                    new PageFormat[] {PageFormat.keys(layer), PageFormat.values(layer)}) {
                double[] read = format.read(page, 0);
                assertEquals(LARGEST_HALF, read[2]);
                assertTrue(Arrays.stream(read).allMatch(Double::isFinite));
            }
        }
    }

    /** Keys in ranges from -1 to 1. */
    private static Layer unitLayer(int slots) {
        Layer layer = Case.sample(Method.KVQUANT2, 0, Case.SinkPlace.NONE, 0).layer();
        float[] steps = new float[2 * layer.channels()];
        for (int i = 1; i < steps.length; i += 2) {
            steps[i] = 1;
        }
        Layer same = layer(layer, slots);
        return same.withKeys(Side.codebook(same.keys().codebook().withSteps(steps)));
    }

    private static Side withLevels(Side side, float... levels) {
        return Side.codebook(side.codebook().withLevels(levels, levels));
    }

    /** The page of one token. */
    private static ByteBuffer stored(Layer layer, float[] k, float[] v) {
        float[] row = Scenario.concat(new float[layer.heads() * layer.headDim()], k, v);
        Rope rope = Scenario.rope(layer.headDim(), 0);
        byte poison = CacheState.POISONS[0];
        try (CacheState state = new CacheState(layer, rope, new int[] {1}, 0, poison, null)) {
            state.append(row, new int[] {1}, null);
            return state.page(0, 0);
        }
    }
}
