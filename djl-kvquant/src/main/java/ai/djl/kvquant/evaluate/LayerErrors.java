/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.evaluate;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.llama.LlamaEvaluator;
import ai.djl.kvquant.llama.LlamaEvaluator.LayerSums;
import ai.djl.kvquant.llama.LlamaLayers;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.List;
import java.util.function.IntConsumer;
import java.util.function.ToDoubleFunction;
import java.util.stream.IntStream;

/**
 * Measures the error of every layer under several KV caches. Each layer is given its exact input,
 * so that errors do not add up from layer to layer.
 *
 * <p>Keys and values are compared as the cache gives them back, sinks exactly and nothing of the
 * recent window; the output of attention as real decoding would have it, recent window included.
 *
 * <p>Used by one thread at a time.
 */
public final class LayerErrors implements AutoCloseable {

    private final List<LlamaEvaluator> evaluators = new ArrayList<>();
    private final LlamaLayers layers;
    private final double[][][] sums;
    private final int numLayers;

    /**
     * Prepares a measurement.
     *
     * @param model the model
     * @param caches the caches
     * @param context the longest text, in tokens
     * @throws IllegalArgumentException if a cache or the context does not fit the model
     */
    public LayerErrors(LlamaModel model, List<CacheOptions> caches, int context) {
        numLayers = model.geometry().numLayers();
        layers = new LlamaLayers(model, context);
        try {
            for (CacheOptions cache : caches) {
                evaluators.add(model.evaluator(cache, context));
            }
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
        sums = new double[caches.size()][numLayers][6];
    }

    /**
     * Adds a text.
     *
     * @param tokens its token ids, at most as many as the context
     * @param progress told the number of layers that are done
     */
    public void add(int[] tokens, IntConsumer progress) {
        try (NDManager manager = layers.newManager()) {
            NDArray input = layers.embed(manager, tokens);
            for (int layer = 0; layer < numLayers; ++layer) {
                try (NDManager scope = layers.newManager()) {
                    LlamaLayers.Details exact = layers.details(scope, layer, input);
                    for (int i = 0; i < sums.length; ++i) {
                        add(sums[i][layer], evaluators.get(i).layerErrors(layer, exact));
                    }
                    exact.hidden().attach(manager);
                    input.close();
                    input = exact.hidden();
                }
                progress.accept(layer + 1);
            }
        }
    }

    private static void add(double[] total, LayerSums more) {
        total[0] += more.keys();
        total[1] += more.keyError();
        total[2] += more.values();
        total[3] += more.valueError();
        total[4] += more.attention();
        total[5] += more.attentionError();
    }

    /**
     * Returns the ratios over all texts so far.
     *
     * @return one result per cache, in the order of the caches
     */
    public List<LayerErrorResult> results() {
        List<LayerErrorResult> results = new ArrayList<>();
        for (int i = 0; i < sums.length; ++i) {
            results.add(
                    new LayerErrorResult(
                            evaluators.get(i).options().dtype().name(),
                            ratios(sums[i], 0),
                            ratios(sums[i], 2),
                            ratios(sums[i], 4)));
        }
        return results;
    }

    private static List<Double> ratios(double[][] layers, int signal) {
        ToDoubleFunction<double[]> decibel = s -> 10 * Math.log10(s[signal] / s[signal + 1]);
        return IntStream.range(0, layers.length)
                .mapToObj(layer -> decibel.applyAsDouble(layers[layer]))
                .toList();
    }

    /** Frees the caches; the model stays. */
    @Override
    public void close() {
        evaluators.forEach(LlamaEvaluator::close);
        layers.close();
    }
}
