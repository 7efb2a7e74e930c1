/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

/**
 * What a cache must look like after an append, apart from codes: exact copies exact, unused memory
 * untouched.
 */
final class Storage {

    /** Pools larger than this are checked for writes to guard pages only. */
    private static final int SMALL_POOL = 4 << 20;

    private Storage() {}

    /**
     * What is wrong with the cache of a scenario whose last tokens are appended but not committed.
     */
    static List<String> problems(Scenario scenario) {
        List<String> problems = new ArrayList<>();
        CacheState state = scenario.state;
        if (state.pages.capacity() <= SMALL_POOL) {
            report(
                    problems,
                    "page byte",
                    strayWrite(state.pages, usedBits(scenario), state.poison));
        }
        if (state.exact.capacity() <= SMALL_POOL) {
            report(
                    problems,
                    "exact byte",
                    strayWrite(state.exact, usedExact(scenario), state.poison));
        }
        for (int b = 0; b < state.batch; ++b) {
            checkExact(scenario, b, problems);
        }
        return problems;
    }

    private static void report(List<String> problems, String what, int offset) {
        if (offset >= 0) {
            problems.add(what + " " + offset + " was written although it is not in use");
        }
    }

    /** The first byte that differs from the poison in a bit that is not in use; -1: none. */
    private static int strayWrite(ByteBuffer pool, byte[] used, byte poison) {
        for (int i = 0; i < used.length; ++i) {
            if (((pool.get(i) ^ poison) & ~used[i] & 0xff) != 0) {
                return i;
            }
        }
        return -1;
    }

    private static byte[] usedBits(Scenario scenario) {
        CacheState state = scenario.state;
        byte[] used = new byte[state.pages.capacity()];
        PageFormat[] sides = {PageFormat.keys(state.layer), PageFormat.values(state.layer)};
        for (int b = 0; b < state.batch; ++b) {
            for (int t = 0; t < state.quantized(b, state.lengths[b] + 1); ++t) {
                int page = state.pageTable[b][t / 64] * state.pageBytes;
                for (PageFormat side : sides) {
                    markToken(used, page, side, t % 64);
                }
            }
        }
        return used;
    }

    private static void markToken(byte[] used, int page, PageFormat side, int slot) {
        for (int c = 0; c < side.layer.channels(); ++c) {
            long first = side.elementBit(slot, c);
            long bits = (1L << side.width(c)) - 1 << first % 8;
            for (int i = page + (int) (first / 8); bits != 0; bits >>>= 8) {
                used[i++] |= (byte) bits;
            }
        }
        for (int g = 0; g < side.groups(); ++g) {
            for (int i = 0; i < 2; ++i) {
                used[page + side.scaleOffset(slot, g) + i] = -1;
                used[page + side.zeroOffset(slot, g) + i] = -1;
            }
        }
        for (int i = 0; i < side.outliers(); ++i) {
            for (int b = 0; b < 2; ++b) {
                used[page + side.outlierOffset(slot, i) + b] = -1;
                used[page + side.outlierOffset(slot, i) + PageFormat.TILE * 2 + b] = -1;
            }
        }
        for (int h = 0; h < side.norms(); ++h) {
            used[page + side.normOffset(slot, h)] = -1;
            used[page + side.normOffset(slot, h) + 1] = -1;
        }
    }

    /**
     * Headers of sink pages, all slots of sink pages, and ring slots that some token has passed
     * through.
     */
    private static byte[] usedExact(Scenario scenario) {
        CacheState state = scenario.state;
        byte[] used = new byte[state.exact.capacity()];
        for (int b = 0; b < state.batch && state.layer.hasExactPages(); ++b) {
            for (int column = 0; column < state.layer.sinkPages(); ++column) {
                int page = state.exactTable[b][column] * state.exactBytes;
                java.util.Arrays.fill(used, page, page + ExactFormat.HEADER_BYTES, (byte) -1);
                for (int slot = 0; slot < ExactFormat.SLOTS; ++slot) {
                    markSlot(used, page, state.layer, slot);
                }
            }
            for (int t = 0; t <= state.lengths[b] && state.ring() > 0; ++t) {
                int column = state.layer.sinkPages() + t / 16 % state.ring();
                markSlot(used, state.exactTable[b][column] * state.exactBytes, state.layer, t % 16);
            }
        }
        return used;
    }

    private static void markSlot(byte[] used, int page, Layer layer, int slot) {
        for (int c = 0; c < 2 * layer.channels(); ++c) {
            int offset = page + ExactFormat.HEADER_BYTES + (c * ExactFormat.SLOTS + slot) * 2;
            used[offset] = -1;
            used[offset + 1] = -1;
        }
    }

    /** Sinks and window hold what the projections gave, rounded to fp16. */
    private static void checkExact(Scenario scenario, int b, List<String> problems) {
        CacheState state = scenario.state;
        int length = state.lengths[b] + 1;
        ExactFormat.sinks(state, b, length)
                .forEach((token, place) -> checkSlot(scenario, b, token, place, problems));
        for (int t = state.quantized(b, length); t < length; ++t) {
            int column = state.layer.sinkPages() + t / 16 % state.ring();
            checkSlot(scenario, b, t, 16 * column + t % 16, problems);
        }
    }

    private static void checkSlot(
            Scenario scenario, int b, int token, int place, List<String> problems) {
        Layer layer = scenario.layer;
        ByteBuffer page = scenario.state.exactPage(b, place / 16);
        float[] row = scenario.rows(b, token, token + 1);
        double[] k = ExactFormat.keys(layer, page, place % 16);
        double[] v = ExactFormat.values(layer, page, place % 16);
        int begin = layer.heads() * layer.headDim();
        for (int c = 0; c < layer.channels(); ++c) {
            if (k[c] != Half.round(row[begin + c])
                    || v[c] != Half.round(row[begin + layer.channels() + c])) {
                problems.add("row " + b + ": the exact copy of token " + token + " differs");
                return;
            }
        }
    }
}
