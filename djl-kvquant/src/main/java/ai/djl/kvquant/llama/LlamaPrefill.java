/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.generate.ChunkedPrefill;
import ai.djl.kvquant.generate.DecodingBatch;
import java.util.Arrays;
import java.util.List;

/** A prompt of a LLaMA model that is computed some tokens at a time. */
final class LlamaPrefill implements ChunkedPrefill {

    private final LlamaModel model;
    private final KvCache cache;
    private final CacheSequence sequence;
    private final int[] prompt;
    private final int chunkTokens;
    private LlamaBatch batch;
    private boolean finished;

    LlamaPrefill(
            LlamaModel model,
            KvCache cache,
            CacheSequence sequence,
            int[] prompt,
            int chunkTokens) {
        this.model = model;
        this.cache = cache;
        this.sequence = sequence;
        this.prompt = prompt;
        this.chunkTokens = chunkTokens;
    }

    /** {@inheritDoc} */
    @Override
    public int remaining() {
        return prompt.length - sequence.length();
    }

    /**
     * {@inheritDoc}
     *
     * <p>A prompt that gets a basis of its own is computed at once.
     */
    @Override
    public void advance() {
        model.requireOpen();
        if (remaining() == 0) {
            return;
        }
        int end =
                cache.wantsPromptBasis(prompt.length)
                        ? prompt.length
                        : Math.min(prompt.length, sequence.length() + chunkTokens);
        List<int[]> part = List.of(Arrays.copyOf(prompt, end));
        LlamaBatch computed = LlamaBatch.prefill(model, cache, List.of(sequence), part);
        if (end == prompt.length) {
            batch = computed;
        } else {
            computed.release();
        }
    }

    /**
     * {@inheritDoc}
     *
     * <p>Prompts that begin alike may take over the cache from now on, while it is decoded.
     */
    @Override
    public DecodingBatch finish() {
        if (batch == null) {
            throw new IllegalStateException(
                    remaining() + " tokens of the prompt remain; call advance until none do.");
        }
        if (!finished) {
            finished = true;
            cache.retire(sequence.fork());
        }
        return batch;
    }

    /** {@inheritDoc} */
    @Override
    public void close() {
        if (finished) {
            return;
        }
        finished = true;
        if (batch == null) {
            cache.retire(sequence);
        } else {
            batch.close();
        }
    }
}
