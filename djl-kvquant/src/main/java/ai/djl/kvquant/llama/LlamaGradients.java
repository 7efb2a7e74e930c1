/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * How the loss of a text, the mean cross-entropy of its next tokens, depends on what a layer stores
 * in a cache. The backward pass of the exact model, one layer at a time from the last to the first:
 * each is run again from its input, so that memory is bounded by a layer.
 *
 * <p>Thread-safe, but only one thread of a process takes gradients at a time.
 */
public final class LlamaGradients {

    private final LlamaModel model;
    private RopeAngles angles;

    /**
     * Prepares to take gradients.
     *
     * @param model the model
     * @throws IllegalArgumentException if the model is on a GPU
     */
    public LlamaGradients(LlamaModel model) {
        if (model.operators().onGpu()) {
            throw new IllegalArgumentException(
                    "Gradients are taken on a CPU only, but the model is on "
                            + model.device()
                            + ". Calibrate with gradients on the device cpu.");
        }
        this.model = model;
    }

    /**
     * Gradients of a layer, and the projections that were made on the way.
     *
     * @param input with respect to the layer's input, FLOAT32 {@code [tokens, hidden]}
     * @param keys with respect to its keys before RoPE, FLOAT32 {@code [tokens, kv heads, headDim]}
     * @param values with respect to its values, FLOAT32 {@code [tokens, kv heads, headDim]}
     * @param qkv the layer's projections before RoPE, as {@link LlamaLayers.Output#qkv}
     */
    public record Output(NDArray input, NDArray keys, NDArray values, NDArray qkv) {}

    /**
     * Takes the gradient with respect to the output of the last layer, where a backward pass
     * begins.
     *
     * @param manager the manager that the result is attached to
     * @param hidden the output of the last layer, FLOAT32 {@code [tokens, hidden]}
     * @param tokens the text's token ids
     * @return FLOAT32 {@code [tokens, hidden]}
     */
    public NDArray ofLoss(NDManager manager, NDArray hidden, int[] tokens) {
        for (int id : tokens) {
            model.requireToken(id);
        }
        if (tokens.length < 2 || tokens.length != hidden.getShape().get(0)) {
            throw new IllegalArgumentException(
                    "The hidden states of "
                            + hidden.getShape().get(0)
                            + " tokens and "
                            + tokens.length
                            + " token ids have no loss; allowed: those of the same 2 or more"
                            + " tokens.");
        }
        long[] next = Arrays.stream(tokens).skip(1).asLongStream().toArray();
        try (NDManager scope = model.manager().newSubManager()) {
            NDArray targets = scope.create(next);
            NDList result =
                    model.module().runWithGradients(manager, "loss_gradient", hidden, targets);
            return result.get(0);
        }
    }

    /**
     * Takes a layer's gradients.
     *
     * @param manager the manager that the results are attached to
     * @param layer the number of the layer
     * @param input the layer's input, FLOAT32 {@code [tokens, hidden]}
     * @param gradient the gradient with respect to its output: the next layer's {@link
     *     Output#input}, after the last one {@link #ofLoss}
     * @return its gradients
     */
    public Output ofLayer(NDManager manager, int layer, NDArray input, NDArray gradient) {
        try (NDManager scope = model.manager().newSubManager()) {
            int tokens = Math.toIntExact(input.getShape().get(0));
            int[] positions = IntStream.range(0, tokens).toArray();
            RopeAngles table = angles(tokens);
            NDList result =
                    model.module()
                            .runWithGradients(
                                    manager,
                                    "layer_gradient",
                                    input,
                                    gradient,
                                    table.cos(scope, positions),
                                    table.sin(scope, positions),
                                    scope.create((long) layer));
            return new Output(result.get(0), result.get(1), result.get(2), result.get(3));
        }
    }

    /** Angles of so many tokens at least, computed again for the longest text only. */
    private synchronized RopeAngles angles(int tokens) {
        if (angles == null || angles.positions() < tokens) {
            angles = new RopeAngles(model.geometry().inverseFrequencies(), tokens);
        }
        return angles;
    }
}
