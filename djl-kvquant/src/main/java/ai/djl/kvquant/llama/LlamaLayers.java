/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.cache.CacheBatch;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.List;

/**
 * Runs texts through a model one layer at a time, in full precision, and shows what a layer's
 * projections make of them: memory is bounded by a layer, whatever the model.
 *
 * <p>Used by one thread at a time.
 */
public final class LlamaLayers implements AutoCloseable {

    private final LlamaModel model;
    private final KvCache cache;
    private final CacheSequence sequence;

    /**
     * Prepares to run texts.
     *
     * @param model the model
     * @param context the longest text, in tokens
     */
    public LlamaLayers(LlamaModel model, int context) {
        this.model = model;
        CacheOptions options = CacheOptions.of("auto").forEvaluation(context);
        cache = model.newCache(options, 0);
        sequence = cache.newSequence();
    }

    /**
     * What a layer makes of a text.
     *
     * @param hidden the layer's output, FLOAT32 {@code [tokens, hidden]}
     * @param qkv its projections before RoPE, FLOAT32 {@code [tokens, heads + 2 kv heads,
     *     headDim]}: queries, keys, values
     */
    public record Output(NDArray hidden, NDArray qkv) {}

    /**
     * Returns a manager for inputs and outputs.
     *
     * @return the manager; the caller closes it
     */
    public NDManager newManager() {
        return model.manager().newSubManager();
    }

    /**
     * Looks up a text's embeddings.
     *
     * @param manager the manager that the result is attached to
     * @param tokens the text's token ids
     * @return the first layer's input, FLOAT32 {@code [tokens, hidden]}
     */
    public NDArray embed(NDManager manager, int[] tokens) {
        for (int id : tokens) {
            model.requireToken(id);
        }
        NDArray ids = manager.create(Arrays.stream(tokens).asLongStream().toArray());
        return model.module().run(manager, "embed", ids).get(0);
    }

    /**
     * What a layer makes of a text, with all that it computes on the way.
     *
     * @param input the layer's input, FLOAT32 {@code [tokens, hidden]}
     * @param hidden its output, of the same shape
     * @param qkv its projections before RoPE, FLOAT32 {@code [tokens, heads + 2 kv heads,
     *     headDim]}: queries, keys, values
     * @param keys keys after RoPE, FLOAT32 {@code [kv heads, tokens, headDim]}
     * @param values values, of the same shape
     * @param attention the output of attention, before its projection, FLOAT32 {@code [tokens,
     *     heads headDim]}
     */
    public record Details(
            NDArray input,
            NDArray hidden,
            NDArray qkv,
            NDArray keys,
            NDArray values,
            NDArray attention) {}

    /**
     * Runs a layer.
     *
     * @param manager the manager that the results are attached to
     * @param layer the number of the layer
     * @param input the layer's input, FLOAT32 {@code [tokens, hidden]}
     * @return its output and projections
     */
    public Output run(NDManager manager, int layer, NDArray input) {
        Details details = details(manager, layer, input);
        details.keys().close();
        details.values().close();
        details.attention().close();
        return new Output(details.hidden(), details.qkv());
    }

    /**
     * Runs a layer and keeps what it computes on the way.
     *
     * @param manager the manager that the results are attached to
     * @param layer the number of the layer
     * @param input the layer's input, FLOAT32 {@code [tokens, hidden]}
     * @return input, output and what is between them
     */
    public Details details(NDManager manager, int layer, NDArray input) {
        int count = Math.toIntExact(input.getShape().get(0));
        try (NDManager scope = model.manager().newSubManager()) {
            int[] counts = {count};
            CacheBatch tables = CacheBatch.reserve(scope, cache, List.of(sequence), counts, true);
            NDList result =
                    model.module()
                            .run(
                                    manager,
                                    "layer",
                                    tables.arguments(
                                            cache,
                                            input,
                                            scope.create(new int[] {0, count}),
                                            layer));
            return new Details(
                    input,
                    result.get(0),
                    result.get(1),
                    result.get(2),
                    result.get(3),
                    result.get(4));
        }
    }

    /**
     * Multiplies the columns of a layer's output projection that belong to the same head.
     *
     * @param manager the manager that the result is attached to
     * @param layer the number of the layer
     * @return W'W of each head's columns W, FLOAT32 {@code [heads, headDim, headDim]}
     */
    public NDArray outputGram(NDManager manager, int layer) {
        return model.module().run(manager, "output_gram", layer).get(0);
    }

    /** Frees the tables; the weights stay. */
    @Override
    public void close() {
        sequence.close();
        cache.close();
    }
}
