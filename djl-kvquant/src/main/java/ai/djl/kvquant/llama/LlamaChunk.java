/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.cache.CacheBatch;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.List;

/**
 * Tokens of a prompt on their way through the layers, some layers at a time. Its sequence is not to
 * be used until it has gone through all of them; if it does not get that far, what the sequence
 * holds is of no use.
 */
final class LlamaChunk implements AutoCloseable {

    private final LlamaModel model;
    private final KvCache cache;
    private final CacheSequence sequence;
    private final int[] tokens;
    private final NDManager manager;
    private final CacheBatch tables;
    private final NDArray starts;
    private NDArray hidden;
    private int layer;

    /**
     * Makes room for the tokens that follow those of the sequence.
     *
     * @throws ai.djl.kvquant.cache.CacheFullException if there is none
     */
    LlamaChunk(LlamaModel model, KvCache cache, CacheSequence sequence, int[] tokens) {
        this.model = model;
        this.cache = cache;
        this.sequence = sequence;
        this.tokens = tokens;
        manager = model.manager().newSubManager();
        try {
            int[] counts = {tokens.length};
            tables = CacheBatch.reserve(manager, cache, List.of(sequence), counts, true);
            starts = manager.create(new int[] {0, tokens.length});
            NDArray ids = manager.create(Arrays.stream(tokens).asLongStream().toArray());
            hidden = model.module().run(manager, "embed", ids).get(0);
        } catch (RuntimeException | Error e) {
            manager.close();
            throw e;
        }
    }

    int tokens() {
        return tokens.length;
    }

    /** The work of one layer, in that of a token whose past is short. */
    double workOfLayer() {
        LlamaConfig config = model.config();
        int heads = config.numHeads() * config.headDim();
        int kvHeads = config.numKvHeads() * config.headDim();
        double weights =
                (double) config.hiddenSize() * (2 * heads + 2 * kvHeads)
                        + 3.0 * config.hiddenSize() * config.intermediateSize();
        double attention = 2.0 * heads * (sequence.length() + tokens.length / 2.0);
        return tokens.length * (1 + attention / weights) / config.numLayers();
    }

    /** Goes through some layers; returns whether it has gone through all. */
    boolean advance(int layers) {
        int end = Math.min(model.config().numLayers(), layer + layers);
        try (NDManager scope = manager.newSubManager()) {
            NDArray output =
                    model.module()
                            .run(
                                    scope,
                                    "prefill_layers_of_chunk",
                                    tables.arguments(
                                            cache,
                                            hidden,
                                            starts,
                                            sequence.length(),
                                            cache.biasedFrom(sequence),
                                            cache.biasedTo(sequence),
                                            layer,
                                            end,
                                            cache.wantsMassiveEntries()))
                            .get(0);
            output.attach(manager);
            hidden.close();
            hidden = output;
        }
        layer = end;
        if (end < model.config().numLayers()) {
            return false;
        }
        CacheBatch.commit(cache, List.of(sequence), List.of(tokens));
        return true;
    }

    /** The logits of the last token, after all layers. */
    float[] logits() {
        try (NDManager scope = manager.newSubManager()) {
            NDArray last = hidden.get(tokens.length - 1 + ":");
            last.attach(scope);
            return model.module().run(scope, "logits", last).get(0).toFloatArray();
        }
    }

    @Override
    public void close() {
        manager.close();
    }
}
