/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;

/**
 * Tensors of a model that nobody trained, made on the device: normally distributed, as initial
 * weights are, with norms of 1. The same numbers each time on one kind of device.
 */
final class RandomWeights implements WeightSource {

    private static final int SEED = 1;
    private static final double SCALE = 0.02;

    private final NDManager manager;
    private final Operators operators;
    private final LlamaConfig config;
    private final WeightType type;

    RandomWeights(NDManager manager, Operators operators, LlamaConfig config, WeightType type) {
        this.manager = manager;
        this.operators = operators;
        this.config = config;
        this.type = type;
        operators.seed(SEED);
    }

    @Override
    public boolean has(String name) {
        return !name.endsWith(".bias");
    }

    @Override
    public NDArray tensor(String name) {
        boolean norm = name.contains("norm");
        return operators.random(
                manager, shape(name), norm ? 0 : SCALE, norm ? 1 : 0, type.tensorType());
    }

    @Override
    public long memory(String name) {
        return shape(name).size() * type.bytes();
    }

    private Shape shape(String name) {
        long hidden = config.hiddenSize();
        long inner = config.intermediateSize();
        long queries = (long) config.numHeads() * config.headDim();
        long keys = (long) config.numKvHeads() * config.headDim();
        String[] parts = name.split("\\.");
        return switch (parts[parts.length - 2]) {
            case "embed_tokens", "lm_head" -> new Shape(config.vocabSize(), hidden);
            case "q_proj" -> new Shape(queries, hidden);
            case "k_proj", "v_proj" -> new Shape(keys, hidden);
            case "o_proj" -> new Shape(hidden, queries);
            case "gate_proj", "up_proj" -> new Shape(inner, hidden);
            case "down_proj" -> new Shape(hidden, inner);
            default -> new Shape(hidden);
        };
    }
}
