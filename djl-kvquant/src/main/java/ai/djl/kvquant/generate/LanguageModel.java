/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.util.List;

/**
 * A causal language model that decodes step by step.
 *
 * <p>Implementations are thread-safe: many batches may be prefilled and decoded at the same time.
 * Each batch holds its own KV cache until it is closed.
 */
public interface LanguageModel {

    /**
     * Returns the number of tokens in the vocabulary, the width of a row of logits.
     *
     * @return the number of tokens in the vocabulary
     */
    int vocabularySize();

    /**
     * Returns the longest sequence that the model accepts, prompt and generated text together.
     *
     * @return the context length in tokens
     */
    int contextLength();

    /**
     * Processes prompts and keeps their keys and values for decoding.
     *
     * @param prompts the token ids of each prompt, of any lengths, at least one token each
     * @return the batch, one row per prompt in the same order; the caller closes it
     * @throws ai.djl.kvquant.cache.CacheFullException if the prompts do not fit into the KV cache
     */
    DecodingBatch prefill(List<int[]> prompts);

    /**
     * Begins to process a prompt some tokens at a time. What comes out depends on the prompt and on
     * the number of tokens at a time, not on what else the model does.
     *
     * @param prompt the token ids, at least one
     * @param chunkTokens the most tokens to compute in one call, at least one
     * @return the prompt, of which nothing is computed yet; the caller closes it
     * @throws ai.djl.kvquant.cache.CacheFullException if the KV cache is too small for the prompt
     */
    ChunkedPrefill startPrefill(int[] prompt, int chunkTokens);
}
