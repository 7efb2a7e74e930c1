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
import java.util.stream.IntStream;

/**
 * Runs whole texts through a model in one pass, each token reading the ones before it as real
 * decoding would: exactly if they are sinks or in the recent window, otherwise as they are stored
 * in the cache.
 *
 * <p>Used by one thread at a time.
 */
public final class LlamaEvaluator implements AutoCloseable {

    private final LlamaModel model;
    private final KvCache cache;
    private final CacheOptions options;
    private final int context;

    LlamaEvaluator(LlamaModel model, CacheOptions options, int context) {
        this.model = model;
        this.options = options;
        this.context = context;
        int longest = model.geometry().maxTokens();
        if (context < 2 || context > longest) {
            throw new IllegalArgumentException(
                    "An evaluation context of "
                            + context
                            + " tokens is not possible; allowed: 2 to the model's "
                            + longest
                            + ".");
        }
        cache = model.newCache(options.forEvaluation(context), 0);
    }

    /**
     * Returns the options that were asked for.
     *
     * @return the options
     */
    public CacheOptions options() {
        return options;
    }

    /**
     * Returns the bits per key element, scales and zeros included, and for a text as long as the
     * context a basis of its own.
     *
     * @return the effective bits
     */
    public double bitsPerKey() {
        return cache.bitsPerKey(context);
    }

    /**
     * Returns the bits per value element, scales and zeros included.
     *
     * @return the effective bits
     */
    public double bitsPerValue() {
        return cache.bitsPerValue();
    }

    /**
     * Returns the bits per key element of a text, with all that is stored: scales and zeros, sinks
     * and the recent window as well.
     *
     * @param tokens the text's length
     * @return the effective bits
     */
    public double bitsPerKey(int tokens) {
        return cache.bitsPerKey(tokens, options.window());
    }

    /**
     * Returns the bits per value element of a text, with all that is stored: norms or scales and
     * zeros, sinks and the recent window as well.
     *
     * @param tokens the text's length
     * @return the effective bits
     */
    public double bitsPerValue(int tokens) {
        return cache.bitsPerValue(tokens, options.window());
    }

    /**
     * Returns a manager for results of {@link #hiddenStates}.
     *
     * @return the manager; the caller closes it
     */
    public NDManager newManager() {
        return model.manager().newSubManager();
    }

    /**
     * Computes the hidden states after the last layer, before the final norm.
     *
     * @param manager the manager that the result is attached to
     * @param tokens the text's token ids, at most as many as the context
     * @return FLOAT32 {@code [tokens, hidden]}
     */
    public NDArray hiddenStates(NDManager manager, int[] tokens) {
        if (tokens.length == 0 || tokens.length > context) {
            throw new IllegalArgumentException(
                    "A text of "
                            + tokens.length
                            + " tokens can not be evaluated; allowed: 1 to "
                            + context
                            + ".");
        }
        try (NDManager scope = model.manager().newSubManager();
                CacheSequence sequence = cache.newSequence()) {
            if (cache.wantsPromptBasis(tokens.length)) {
                new LlamaPromptPass(model, cache, sequence).fit(tokens);
            }
            int[] counts = {tokens.length};
            CacheBatch tables = CacheBatch.reserve(scope, cache, List.of(sequence), counts, true);
            NDList result =
                    model.module()
                            .run(
                                    scope,
                                    "streaming",
                                    tables.arguments(
                                            cache,
                                            scope.create(longs(tokens, 0)),
                                            scope.create(new int[] {0, tokens.length}),
                                            scope.create(new int[][] {{tokens.length, 0}}),
                                            options.windows(model.geometry().numLayers()),
                                            cache.wantsMassiveEntries(),
                                            cache.hasScoreBias(),
                                            cache.options().firstSinks()));
            NDArray hidden = result.get(0);
            hidden.attach(manager);
            return hidden;
        }
    }

    /**
     * Measures what the cache makes of one layer whose input is exact.
     *
     * @param layer the number of the layer
     * @param exact what the layer makes of a text, at most as many tokens as the context
     * @return the sums of squares of signals and errors
     */
    public LayerSums layerErrors(int layer, LlamaLayers.Details exact) {
        int count = Math.toIntExact(exact.input().getShape().get(0));
        try (NDManager scope = model.manager().newSubManager();
                CacheSequence sequence = cache.newSequence()) {
            int[] counts = {count};
            CacheBatch tables = CacheBatch.reserve(scope, cache, List.of(sequence), counts, true);
            double[] sums =
                    model.module()
                            .run(
                                    scope,
                                    "layer_errors",
                                    tables.arguments(
                                            cache,
                                            exact.input(),
                                            exact.qkv(),
                                            exact.keys(),
                                            exact.values(),
                                            exact.attention(),
                                            scope.create(new int[] {0, count}),
                                            scope.create(new int[][] {{count, 0}}),
                                            layer,
                                            options.windows(model.geometry().numLayers())[layer],
                                            cache.wantsMassiveEntries(),
                                            cache.hasScoreBias(),
                                            cache.options().firstSinks()))
                            .get(0)
                            .toDoubleArray();
            return new LayerSums(sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]);
        }
    }

    /**
     * Sums of squares over a text, of one layer.
     *
     * @param keys of keys after RoPE
     * @param keyError of what reading them back from the cache changes
     * @param values of values
     * @param valueError of what reading them back changes
     * @param attention of the output of attention
     * @param attentionError of what the cache changes in it, tokens being read as in real decoding
     */
    public record LayerSums(
            double keys,
            double keyError,
            double values,
            double valueError,
            double attention,
            double attentionError) {}

    /**
     * Compares what a text's next tokens are under several caches.
     *
     * @param model the model
     * @param hiddenStates of the same text, one array per cache; the first is the reference
     * @param tokens the text's token ids
     * @return per cache the sums over all tokens but the first
     */
    public static List<Sums> compare(LlamaModel model, List<NDArray> hiddenStates, int[] tokens) {
        try (NDManager scope = model.manager().newSubManager()) {
            NDArray targets = scope.create(longs(tokens, 1));
            NDList states = new NDList(hiddenStates);
            double[] sums =
                    model.module().run(scope, "compare", states, targets).get(0).toDoubleArray();
            return IntStream.range(0, hiddenStates.size())
                    .mapToObj(i -> new Sums(sums[3 * i], sums[3 * i + 1], sums[3 * i + 2]))
                    .toList();
        }
    }

    private static long[] longs(int[] tokens, int from) {
        return Arrays.stream(tokens, from, tokens.length).asLongStream().toArray();
    }

    /**
     * Sums over the predicted tokens of a text.
     *
     * @param negativeLogLikelihood of the tokens that follow, in nats
     * @param divergence Kullback-Leibler divergence of the reference's distributions from these, in
     *     nats
     * @param agreements how often the most probable token is that of the reference
     */
    public record Sums(double negativeLogLikelihood, double divergence, double agreements) {}

    /** Frees the cache; the weights stay. */
    @Override
    public void close() {
        cache.close();
    }
}
