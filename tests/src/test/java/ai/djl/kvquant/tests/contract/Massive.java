/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;

/**
 * The largest entries of a layer's input over some new tokens, per sequence, as the operator append
 * takes them.
 *
 * @param entries for each sequence up to 20 entries, largest first; tokens count from the
 *     sequence's first new one
 */
record Massive(List<List<Entry>> entries) {

    static final int ENTRIES = 20;

    /** One entry of a layer's input. */
    record Entry(float value, int token) {}

    /**
     * Those of the given entries that decide: the largest 20, the earlier token first among equals.
     */
    static List<Entry> largest(List<Entry> all) {
        return all.stream()
                .sorted(
                        Comparator.comparingDouble((Entry e) -> -e.value())
                                .thenComparingInt(Entry::token))
                .limit(ENTRIES)
                .collect(Collectors.toList());
    }

    /** The tokens that own some entries. */
    static Set<Integer> owners(List<Entry> entries) {
        return entries.stream().map(Entry::token).collect(Collectors.toCollection(TreeSet::new));
    }

    /** Values and rows, [batch, 20]; empty while decoding (null). */
    static NDArray[] tensors(NDManager scope, Massive massive, int batch) {
        if (massive == null) {
            return new NDArray[] {
                scope.create(new Shape(0), DataType.FLOAT32),
                scope.create(new Shape(0), DataType.INT32)
            };
        }
        float[] values = new float[batch * ENTRIES];
        int[] rows = new int[batch * ENTRIES];
        Arrays.fill(rows, -1);
        for (int b = 0; b < batch; ++b) {
            List<Entry> row = massive.entries.get(b);
            for (int i = 0; i < row.size(); ++i) {
                values[b * ENTRIES + i] = row.get(i).value();
                rows[b * ENTRIES + i] = row.get(i).token();
            }
        }
        Shape shape = new Shape(batch, ENTRIES);
        return new NDArray[] {scope.create(values, shape), scope.create(rows, shape)};
    }
}
