/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.ndarray.NDArray;
import java.util.Optional;

/**
 * Sequences that are decoded together, one row each.
 *
 * <p>Rows are numbered from 0 to {@code size() - 1}. A batch is used by one thread at a time.
 */
public interface DecodingBatch extends AutoCloseable {

    /**
     * Returns the number of rows.
     *
     * @return the number of rows
     */
    int size();

    /**
     * Returns the number of tokens that the KV cache holds for a row.
     *
     * @param row the row
     * @return the number of tokens, prompt and generated together
     */
    int length(int row);

    /**
     * Returns the logits that follow each row's last token.
     *
     * @return FLOAT32 {@code [size, vocabulary]}, owned by this batch and valid until the next
     *     {@link #step}, {@link #keep} or {@link #close}
     */
    NDArray logits();

    /**
     * Returns the token with the largest logit of each row, of equal ones the smallest id. A batch
     * whose logits are not in the host's memory finds it where they are; the logits need not be
     * copied then.
     *
     * @return one token id per row; empty if this batch does not offer it or if a row has no finite
     *     largest logit: {@link #logits} are what counts then
     */
    default Optional<int[]> mostProbable() {
        return Optional.empty();
    }

    /**
     * Appends one token to every row and computes the next logits.
     *
     * @param tokens one token id per row
     * @throws ai.djl.kvquant.cache.CacheFullException if the KV cache has no room for them
     */
    void step(int[] tokens);

    /**
     * Goes on with some rows only; the KV cache of the others is released.
     *
     * @param rows the rows to keep, which become rows 0, 1, … in this order; one that is named
     *     twice goes on as two sequences
     */
    void keep(int[] rows);

    /**
     * Takes over the rows of another batch, behind its own.
     *
     * @param other a batch of the same model, closed by this call
     */
    void add(DecodingBatch other);

    /**
     * Takes a row out; the rows behind it move up. It keeps its KV cache and can be added again.
     *
     * @param row the row, not the only one
     * @return a batch of that row; the caller closes it
     */
    DecodingBatch take(int row);

    /**
     * Returns what the KV cache of this batch takes now.
     *
     * @return the usage
     */
    CacheUsage usage();

    /** Releases the KV cache; further calls do nothing. */
    @Override
    void close();
}
