/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;

/**
 * The cache of one layer for a batch of sequences, in memory that the test owns and fills with
 * poison.
 */
final class CacheState implements AutoCloseable {

    /** Bytes that read as NaN in fp16, and as NaN (0xff) or a huge number (0x7e) in fp32. */
    static final byte[] POISONS = {(byte) 0xff, 0x7e};

    private static final int GUARD_PAGES = 2;

    final Layer layer;
    final Rope rope;
    final int batch;
    final byte poison;
    final int[] lengths;
    final int[] exactFrom;
    final int[][] pageTable;
    final int[][] exactTable;
    final ByteBuffer pages;
    final ByteBuffer exact;
    final int pageBytes;
    final int exactBytes;
    private final NDManager manager;
    private final NDArray[] constants;

    /**
     * Makes an empty cache.
     *
     * @param capacities tokens of each sequence at most
     * @param spareRing ring pages beyond the fewest that hold the window
     * @param shuffle order of the pages; null: ascending
     */
    CacheState(
            Layer layer, Rope rope, int[] capacities, int spareRing, byte poison, Random shuffle) {
        this.layer = layer;
        this.rope = rope;
        this.poison = poison;
        batch = capacities.length;
        lengths = new int[batch];
        exactFrom = new int[batch];
        pageBytes = PageFormat.pageBytes(layer);
        exactBytes = ExactFormat.bytes(layer);
        int ring = layer.window() == 0 ? 0 : layer.smallestRing() + spareRing;
        int columns = layer.hasExactPages() ? layer.sinkPages() + ring : 0;
        pageTable = tables(Arrays.stream(capacities).map(n -> (n + 63) / 64).toArray(), shuffle);
        exactTable = tables(IntStream.range(0, batch).map(b -> columns).toArray(), shuffle);
        pages = poisoned((long) (count(pageTable) + GUARD_PAGES) * pageBytes);
        exact = poisoned((long) (count(exactTable) + GUARD_PAGES) * exactBytes);
        manager = Kernels.MANAGER.newSubManager();
        ByteBuffer params = layer.pack();
        constants =
                new NDArray[] {
                    bytes(pages, pageBytes),
                    bytes(exact, exactBytes),
                    manager.create(
                            rope.table(),
                            new Shape(
                                    rope.table().length / layer.headDim(), 2, layer.headDim() / 2)),
                    manager.create(params, new Shape(params.remaining()), DataType.UINT8)
                };
    }

    private static int[][] tables(int[] columns, Random shuffle) {
        List<Integer> ids = new ArrayList<>();
        for (int i = 0; i < Arrays.stream(columns).sum() + GUARD_PAGES; ++i) {
            ids.add(i);
        }
        if (shuffle != null) {
            Collections.shuffle(ids, shuffle);
        }
        int next = 1;
        int[][] table = new int[columns.length][];
        for (int b = 0; b < columns.length; ++b) {
            table[b] = new int[columns[b]];
            for (int i = 0; i < columns[b]; ++i) {
                table[b][i] = ids.get(next++);
            }
        }
        return table;
    }

    private static int count(int[][] table) {
        return Arrays.stream(table).mapToInt(row -> row.length).sum();
    }

    private ByteBuffer poisoned(long size) {
        ByteBuffer buffer =
                ByteBuffer.allocateDirect(Math.toIntExact(size)).order(ByteOrder.LITTLE_ENDIAN);
        for (int i = 0; i < buffer.capacity(); ++i) {
            buffer.put(i, poison);
        }
        return buffer;
    }

    private NDArray bytes(ByteBuffer buffer, int rowBytes) {
        return manager.create(
                buffer, new Shape(buffer.capacity() / rowBytes, rowBytes), DataType.UINT8);
    }

    /**
     * Lets a row read the pages that the first row fills with its first tokens; only whole pages
     * are shared.
     */
    void sharePrefix(int row, int tokens) {
        System.arraycopy(pageTable[0], 0, pageTable[row], 0, tokens / 64);
    }

    ByteBuffer page(int b, int token) {
        return slice(pages, pageTable[b][token / 64], pageBytes);
    }

    ByteBuffer exactPage(int b, int column) {
        return slice(exact, exactTable[b][column], exactBytes);
    }

    private static ByteBuffer slice(ByteBuffer buffer, int index, int size) {
        return buffer.slice(index * size, size).order(ByteOrder.LITTLE_ENDIAN);
    }

    int ring() {
        return exactTable[0].length - layer.sinkPages();
    }

    /** Tokens of a sequence of the given length that are read from pages. */
    int quantized(int b, int length) {
        if (layer.window() == 0) {
            return length;
        }
        return Math.max(0, Math.max(length - layer.window(), Math.min(exactFrom[b], length)));
    }

    /** The arguments that every operator on a cache ends with. */
    Object[] arguments(NDManager scope, Object... first) {
        int[] both = new int[2 * batch];
        for (int b = 0; b < batch; ++b) {
            both[2 * b] = lengths[b];
            both[2 * b + 1] = exactFrom[b];
        }
        List<Object> all = new ArrayList<>(Arrays.asList(first));
        all.add(scope.create(both, new Shape(batch, 2)));
        all.add(table(scope, pageTable));
        all.add(table(scope, exactTable));
        all.addAll(Arrays.asList(constants));
        return all.toArray();
    }

    /** A table as the operators take it: rows of equal length, -1 where unused. */
    private static NDArray table(NDManager scope, int[][] rows) {
        int columns = Math.max(1, Arrays.stream(rows).mapToInt(row -> row.length).max().orElse(1));
        int[] flat = new int[rows.length * columns];
        Arrays.fill(flat, -1);
        for (int b = 0; b < rows.length; ++b) {
            System.arraycopy(rows[b], 0, flat, b * columns, rows[b].length);
        }
        return scope.create(flat, new Shape(rows.length, columns));
    }

    /**
     * Appends rows of the fused projections, counts[b] to sequence b; {@link #commit} counts them.
     */
    void append(float[] qkv, int[] counts, Massive massive) {
        try (NDManager scope = manager.newSubManager()) {
            int[] starts = new int[batch + 1];
            for (int b = 0; b < batch; ++b) {
                starts[b + 1] = starts[b] + counts[b];
            }
            NDArray x = scope.create(qkv, new Shape(starts[batch], layer.columns()));
            NDArray[] entries = Massive.tensors(scope, massive, batch);
            Kernels.run(
                    scope,
                    "append",
                    arguments(scope, x, scope.create(starts), entries[0], entries[1]));
        }
    }

    void commit(int[] counts) {
        for (int b = 0; b < batch; ++b) {
            lengths[b] += counts[b];
        }
    }

    /**
     * Attention of the token of each sequence that was appended but not committed, [batch, heads
     * headDim].
     */
    float[] attend(float[] qkv) {
        try (NDManager scope = manager.newSubManager()) {
            NDArray x = scope.create(qkv, new Shape(batch, layer.columns()));
            return Kernels.run(scope, "attend", arguments(scope, x)).get(0).toFloatArray();
        }
    }

    /** Keys and values of tokens [begin, end) of a sequence, [kvHeads, tokens, headDim] each. */
    float[][] dequantize(int b, int begin, int end) {
        try (NDManager scope = manager.newSubManager()) {
            Object[] arguments = arguments(scope, (long) b, (long) begin, (long) end);
            NDList result = Kernels.run(scope, "dequantize", arguments);
            return new float[][] {result.get(0).toFloatArray(), result.get(1).toFloatArray()};
        }
    }

    @Override
    public void close() {
        manager.close();
    }
}
