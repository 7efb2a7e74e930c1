/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.cache.CacheBatch;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.List;

/**
 * Computes a prompt once, in full precision, and stores it in several caches, which then decode on
 * their own: what they generate differs by how they store alone.
 *
 * <p>Used by one thread at a time.
 */
public final class SharedPrefill implements AutoCloseable {

    private final LlamaModel model;
    private final LlamaLayers layers;
    private final int context;

    /**
     * Prepares to compute prompts.
     *
     * @param model the model
     * @param context the longest prompt, in tokens
     */
    public SharedPrefill(LlamaModel model, int context) {
        this.model = model;
        this.context = context;
        layers = new LlamaLayers(model, context);
    }

    /**
     * Computes a prompt and stores it in every cache.
     *
     * @param prompt the token ids, one or more
     * @param caches this model with the caches
     * @return for each cache a batch of one row, ready to decode, whose logits are those of the
     *     exact pass; the caller closes it
     * @throws IllegalArgumentException if the prompt is longer than announced, or a cache is that
     *     of another model
     * @throws ai.djl.kvquant.cache.CacheFullException if the prompt does not fit into a cache
     */
    public List<DecodingBatch> run(int[] prompt, List<LlamaLanguageModel> caches) {
        if (prompt.length == 0 || prompt.length > context) {
            throw new IllegalArgumentException(
                    "A prompt of "
                            + prompt.length
                            + " tokens can not be computed; allowed: 1 to "
                            + context
                            + ".");
        }
        List<Target> targets = new ArrayList<>();
        try (NDManager scope = layers.newManager()) {
            for (LlamaLanguageModel cache : caches) {
                targets.add(target(scope, cache, prompt.length));
            }
            float[] logits = run(scope, prompt, targets);
            List<DecodingBatch> batches = new ArrayList<>();
            for (Target target : targets) {
                CacheBatch.commit(target.cache, List.of(target.sequence), List.of(prompt));
                batches.add(LlamaBatch.of(model, target.cache, target.sequence, logits));
            }
            return batches;
        } catch (RuntimeException | Error e) {
            targets.forEach(target -> target.sequence.close());
            throw e;
        }
    }

    /** Where a prompt is stored. */
    private record Target(KvCache cache, CacheSequence sequence, CacheBatch tables) {}

    private Target target(NDManager scope, LlamaLanguageModel language, int tokens) {
        if (language.model() != model) {
            throw new IllegalArgumentException(
                    "A prompt can be stored in caches of the model that computes it only; make them"
                            + " with its withCache.");
        }
        KvCache cache = language.cache();
        cache.requireRoom(tokens);
        CacheSequence sequence = cache.newSequence();
        try {
            int[] counts = {tokens};
            List<CacheSequence> one = List.of(sequence);
            return new Target(cache, sequence, CacheBatch.reserve(scope, cache, one, counts, true));
        } catch (RuntimeException | Error e) {
            sequence.close();
            throw e;
        }
    }

    /** Runs all layers; returns the logits of the last token. */
    private float[] run(NDManager scope, int[] prompt, List<Target> targets) {
        NDArray starts = scope.create(new int[] {0, prompt.length});
        NDArray hidden = layers.embed(scope, prompt);
        for (int layer = 0; layer < model.geometry().numLayers(); ++layer) {
            LlamaLayers.Output output = layers.run(scope, layer, hidden);
            for (Target target : targets) {
                store(layer, hidden, output.qkv(), starts, target);
            }
            output.qkv().close();
            hidden.close();
            hidden = output.hidden();
        }
        NDArray last = hidden.get(prompt.length - 1 + ":");
        return model.module().run(scope, "logits", last).get(0).get(0).toFloatArray();
    }

    private void store(int layer, NDArray input, NDArray qkv, NDArray starts, Target target) {
        try (NDManager scope = layers.newManager()) {
            boolean massive = target.cache.wantsMassiveEntries();
            Object[] arguments =
                    target.tables.arguments(target.cache, input, qkv, starts, layer, massive);
            model.module().run(scope, "store", arguments);
        }
    }

    /** Frees what prompts are computed with; the caches stay. */
    @Override
    public void close() {
        layers.close();
    }
}
