/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * The tables that operators need to append to and attend over several sequences at once.
 *
 * @param lengths INT32 {@code [batch, 2]}: tokens before the append; tokens from the start without
 *     an exact copy
 * @param pageTable INT32 {@code [batch, columns]}; -1 where unused
 * @param exactTable INT32 {@code [batch, columns]}; -1 where unused
 * @param params packed parameters of the layers, which all sequences share
 */
public record CacheBatch(NDArray lengths, NDArray pageTable, NDArray exactTable, NDList params) {

    /**
     * Makes room for new tokens and builds the tables.
     *
     * @param manager the manager that the tables are attached to
     * @param cache the cache of the sequences
     * @param sequences the sequences, in batch order, of one group of {@link #groups}
     * @param counts new tokens of each
     * @param prefill whether the new tokens belong to prompts
     * @return the tables
     * @throws CacheFullException if there is no room; the sequences keep their tokens
     */
    public static CacheBatch reserve(
            NDManager manager,
            KvCache cache,
            List<CacheSequence> sequences,
            int[] counts,
            boolean prefill) {
        cache.reserve(sequences, counts, prefill);
        int batch = sequences.size();
        int[] lengths = new int[2 * batch];
        int pageColumns = 1;
        for (int b = 0; b < batch; ++b) {
            lengths[2 * b] = sequences.get(b).length();
            lengths[2 * b + 1] = sequences.get(b).exactFrom;
            pageColumns = Math.max(pageColumns, sequences.get(b).pages.size());
            sequences.get(b).reach = sequences.get(b).length() + counts[b];
        }
        int exactColumns = Math.max(1, cache.layout().exactColumns());
        return new CacheBatch(
                create(manager, lengths, batch, 2),
                create(manager, table(sequences, pageColumns, false), batch, pageColumns),
                create(manager, table(sequences, exactColumns, true), batch, exactColumns),
                cache.tensors().params(sequences.get(0)));
    }

    /**
     * Makes room for new tokens that are appended in several parts, so that no part finds the cache
     * full once another is written.
     *
     * @param cache the cache of the sequences
     * @param sequences the sequences
     * @param counts new tokens of each
     * @param prefill whether the new tokens belong to prompts
     * @throws CacheFullException if there is no room; the sequences keep their tokens
     */
    public static void requireRoom(
            KvCache cache, List<CacheSequence> sequences, int[] counts, boolean prefill) {
        cache.reserve(sequences, counts, prefill);
    }

    /**
     * Takes an append back that failed: sequences are as they were before, and can be appended to
     * again. A sequence of which it may have overwritten exact tokens that the window needs can not
     * be restored: every further use but closing it is refused.
     *
     * @param cache the cache of the sequences
     * @param sequences the sequences
     * @param lengths the tokens of each before the append
     */
    public static void rollBack(KvCache cache, List<CacheSequence> sequences, int[] lengths) {
        for (int b = 0; b < lengths.length; ++b) {
            cache.rollBack(sequences.get(b), lengths[b]);
        }
    }

    /**
     * Groups sequences that operators can work on at once: those whose layers have the same
     * parameters.
     *
     * @param sequences the sequences
     * @return the places in the list of each group's sequences
     */
    public static List<List<Integer>> groups(List<CacheSequence> sequences) {
        return SequenceParams.groups(sequences);
    }

    private static int[] table(List<CacheSequence> sequences, int columns, boolean exact) {
        int[] table = new int[sequences.size() * columns];
        Arrays.fill(table, -1);
        for (int b = 0; b < sequences.size(); ++b) {
            IntArray row = exact ? sequences.get(b).exactPages : sequences.get(b).pages;
            System.arraycopy(row.toArray(), 0, table, b * columns, row.size());
        }
        return table;
    }

    private static NDArray create(NDManager manager, int[] values, int rows, int columns) {
        ByteBuffer bytes =
                ByteBuffer.allocateDirect(values.length * Integer.BYTES)
                        .order(ByteOrder.nativeOrder());
        bytes.asIntBuffer().put(values);
        return manager.create(bytes, new Shape(rows, columns), DataType.INT32);
    }

    /**
     * Returns the arguments of a module's method that works on a cache: its own, then the tables
     * and the cache's state in the order of the operators.
     *
     * @param cache the cache that the tables belong to
     * @param first the method's own arguments
     * @return all arguments
     */
    public Object[] arguments(KvCache cache, Object... first) {
        List<Object> all = new ArrayList<>(Arrays.asList(first));
        all.addAll(List.of(lengths, pageTable, exactTable));
        all.addAll(cache.pools().subList(0, 2));
        all.add(params);
        all.add(cache.rope());
        return all.toArray();
    }

    /**
     * Returns where each sequence's new tokens begin among those of all.
     *
     * @param counts the number of new tokens of each sequence
     * @return one more entry than sequences; the last is the number of all new tokens
     */
    public static int[] starts(int[] counts) {
        int[] starts = new int[counts.length + 1];
        for (int i = 0; i < counts.length; ++i) {
            starts[i + 1] = starts[i] + counts[i];
        }
        return starts;
    }

    /**
     * Records that an append has been carried out.
     *
     * @param cache the cache
     * @param sequences the sequences, in batch order
     * @param tokens the tokens that were appended to each
     */
    public static void commit(KvCache cache, List<CacheSequence> sequences, List<int[]> tokens) {
        for (int b = 0; b < sequences.size(); ++b) {
            cache.commit(sequences.get(b), tokens.get(b));
        }
    }
}
