/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;

/** Rows of values such that every pair of values of any two axes stands together in some row. */
final class CoveringArray {

    private static final int TRIES = 20;

    private final int[] sizes;
    private final Random random = new Random(17);
    private final Set<Long> missing = new HashSet<>();

    private CoveringArray(int[] sizes) {
        this.sizes = sizes;
        for (int a = 0; a < sizes.length; ++a) {
            for (int b = a + 1; b < sizes.length; ++b) {
                for (int i = 0; i < sizes[a]; ++i) {
                    for (int j = 0; j < sizes[b]; ++j) {
                        missing.add(pair(a, i, b, j));
                    }
                }
            }
        }
    }

    /** All pairs, greedily: of some rows that contain a missing pair, the one that adds most. */
    static List<int[]> of(int... sizes) {
        CoveringArray array = new CoveringArray(sizes);
        List<int[]> rows = new ArrayList<>();
        while (!array.missing.isEmpty()) {
            long seed = array.missing.iterator().next();
            int[] best = null;
            for (int i = 0; i < TRIES; ++i) {
                int[] row = array.candidate(seed);
                if (best == null || array.gain(row) > array.gain(best)) {
                    best = row;
                }
            }
            array.cover(best);
            rows.add(best);
        }
        return rows;
    }

    private static long pair(int a, int i, int b, int j) {
        return ((long) a << 48) | ((long) i << 32) | ((long) b << 16) | j;
    }

    private int[] candidate(long pair) {
        int[] row = new int[sizes.length];
        for (int a = 0; a < row.length; ++a) {
            row[a] = random.nextInt(sizes[a]);
        }
        row[(int) (pair >> 48)] = (int) (pair >> 32 & 0xffff);
        row[(int) (pair >> 16 & 0xffff)] = (int) (pair & 0xffff);
        for (int a = 0; a < row.length; ++a) {
            if (a != pair >> 48 && a != (pair >> 16 & 0xffff)) {
                improve(row, a);
            }
        }
        return row;
    }

    private void improve(int[] row, int axis) {
        int best = row[axis];
        int most = -1;
        int begin = random.nextInt(sizes[axis]);
        for (int n = 0; n < sizes[axis]; ++n) {
            row[axis] = (begin + n) % sizes[axis];
            int gain = gain(row);
            if (gain > most) {
                most = gain;
                best = row[axis];
            }
        }
        row[axis] = best;
    }

    private int gain(int[] row) {
        int gain = 0;
        for (int a = 0; a < row.length; ++a) {
            for (int b = a + 1; b < row.length; ++b) {
                gain += missing.contains(pair(a, row[a], b, row[b])) ? 1 : 0;
            }
        }
        return gain;
    }

    private void cover(int[] row) {
        for (int a = 0; a < row.length; ++a) {
            for (int b = a + 1; b < row.length; ++b) {
                missing.remove(pair(a, row[a], b, row[b]));
            }
        }
    }
}
