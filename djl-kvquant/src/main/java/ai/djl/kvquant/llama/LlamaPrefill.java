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

    /** Longer chunks go through all layers at once. */
    private static final int MOST_IN_PARTS = 512;

    private final LlamaModel model;
    private final KvCache cache;
    private final CacheSequence sequence;
    private final int[] prompt;
    private final int chunkTokens;
    private LlamaBatch batch;
    private LlamaChunk chunk;
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

    /** {@inheritDoc} */
    @Override
    public void advance() {
        int before = remaining();
        while (before > 0 && remaining() == before) {
            advance(Integer.MAX_VALUE);
        }
    }

    /**
     * {@inheritDoc}
     *
     * <p>A prompt that gets a basis of its own is computed at once.
     */
    @Override
    public int advance(int budget) {
        model.requireOpen();
        if (remaining() == 0) {
            return 0;
        }
        int count = Math.min(remaining(), chunkTokens);
        if (cache.wantsPromptBasis(prompt.length) || count > MOST_IN_PARTS) {
            return computeAtOnce(count);
        }
        if (chunk == null) {
            int begin = sequence.length();
            int[] tokens = Arrays.copyOfRange(prompt, begin, begin + count);
            chunk = new LlamaChunk(model, cache, sequence, tokens);
        }
        double work = chunk.workOfLayer();
        int layers = (int) Math.max(1, Math.min(budget / work, model.config().numLayers()));
        if (chunk.advance(layers)) {
            endChunk();
        }
        return (int) Math.ceil(layers * work);
    }

    private int computeAtOnce(int count) {
        int begin = sequence.length();
        boolean all = cache.wantsPromptBasis(prompt.length);
        int end = all ? prompt.length : begin + count;
        List<int[]> part = List.of(Arrays.copyOf(prompt, end));
        LlamaBatch computed = LlamaBatch.prefill(model, cache, List.of(sequence), part);
        if (end == prompt.length) {
            batch = computed;
        } else {
            computed.release();
        }
        return end - begin;
    }

    private void endChunk() {
        try (LlamaChunk ended = chunk) {
            chunk = null;
            if (remaining() == 0) {
                batch = LlamaBatch.of(model, cache, sequence, ended.logits());
            }
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
        if (chunk != null) {
            // Some layers hold more tokens than others: earlier chunks are lost with this one.
            chunk.close();
            sequence.close();
        } else if (batch == null) {
            cache.retire(sequence);
        } else {
            batch.close();
        }
    }
}
