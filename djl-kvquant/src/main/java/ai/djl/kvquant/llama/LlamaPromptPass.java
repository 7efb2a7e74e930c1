/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.cache.CacheBatch;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.cache.PromptBasis;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.List;

/**
 * Runs a prompt through a model one layer at a time, in full precision, so that its sequence can
 * have a basis found from all of the prompt's keys. Memory is that of one layer's activations.
 */
final class LlamaPromptPass {

    private final LlamaModel model;
    private final KvCache cache;
    private final CacheSequence sequence;

    /** For a sequence that is still empty. */
    LlamaPromptPass(LlamaModel model, KvCache cache, CacheSequence sequence) {
        this.model = model;
        this.cache = cache;
        this.sequence = sequence;
    }

    /** Finds the basis only. */
    void fit(int[] tokens) {
        try (NDManager scope = model.manager().newSubManager()) {
            run(scope, tokens, false);
        }
    }

    /** Finds the basis, appends the prompt in it and returns the last token's logits. */
    float[] prefill(int[] tokens) {
        try (NDManager scope = model.manager().newSubManager()) {
            NDArray hidden = append(scope, tokens);
            NDArray last = hidden.get(tokens.length - 1 + ":");
            return model.module().run(scope, "logits", last).get(0).toFloatArray();
        }
    }

    /** Finds the basis and appends the prompt in it; returns what the last layer made of it. */
    NDArray append(NDManager scope, int[] tokens) {
        NDArray hidden = run(scope, tokens, true);
        CacheBatch.commit(cache, List.of(sequence), List.of(tokens));
        return hidden;
    }

    /** The hidden states after the last layer. */
    private NDArray run(NDManager scope, int[] tokens, boolean append) {
        NDArray ids = scope.create(Arrays.stream(tokens).asLongStream().toArray());
        NDArray starts = scope.create(new int[] {0, tokens.length});
        NDArray hidden = model.module().run(scope, "embed", ids).get(0);
        try (PromptBasis basis = new PromptBasis(cache, sequence)) {
            int[] counts = {tokens.length};
            CacheBatch tables = CacheBatch.reserve(scope, cache, List.of(sequence), counts, true);
            for (int layer = 0; layer < cache.geometry().numLayers(); ++layer) {
                try (NDManager ofLayer = scope.newSubManager()) {
                    NDList result =
                            model.module()
                                    .run(
                                            ofLayer,
                                            "layer",
                                            tables.arguments(cache, hidden, starts, layer));
                    NDArray qkv = result.get(1);
                    basis.fit(layer, keys(qkv));
                    if (append) {
                        model.module()
                                .run(
                                        ofLayer,
                                        "store",
                                        tables.arguments(cache, hidden, qkv, starts, layer, false));
                    }
                    hidden.close();
                    hidden = result.get(0);
                    hidden.attach(scope);
                }
            }
        }
        return hidden;
    }

    /** Of projections [tokens, heads + 2 kv heads, headDim]. */
    private NDArray keys(NDArray qkv) {
        int heads = cache.geometry().numHeads();
        int end = heads + cache.geometry().numKvHeads();
        return qkv.get(":, " + heads + ":" + end).reshape(-1, cache.geometry().channels());
    }
}
