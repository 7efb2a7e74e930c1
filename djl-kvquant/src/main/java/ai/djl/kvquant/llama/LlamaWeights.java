/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.io.IOException;
import java.util.Arrays;

/** A model's tensors in the order in which the TorchScript module wants them. */
final class LlamaWeights {

    private static final String EMBEDDING = "model.embed_tokens.weight";
    private static final String NORM = "model.norm.weight";
    private static final String HEAD = "lm_head.weight";
    private static final String[] LAYER = {
        "input_layernorm.weight",
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.q_proj.bias",
        "self_attn.k_proj.bias",
        "self_attn.v_proj.bias",
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "post_attention_layernorm.weight",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.gate_proj.bias",
        "mlp.up_proj.bias",
        "mlp.down_proj.weight",
        "mlp.down_proj.bias"
    };

    /** Tensors that a fused layer has joined in the place of the first: q k v, gate and up. */
    private static final int[][] JOINED = {{1, 2, 3}, {4, 5, 6}, {10, 11}, {12, 13}};

    private final NDManager manager;
    private final Operators operators;
    private final WeightSource source;
    private final boolean fused;

    /**
     * Prepares to read.
     *
     * @param fused whether layers are those of {@link FusedCode}
     */
    LlamaWeights(NDManager manager, Operators operators, WeightSource source, boolean fused) {
        this.manager = manager;
        this.operators = operators;
        this.source = source;
        this.fused = fused;
    }

    /**
     * Embedding, final norm, output projection, an empty tensor, then the layers' tensors; absent
     * biases are empty.
     */
    NDList read(LlamaConfig config) throws IOException {
        NDArray none = manager.create(new Shape(0), DataType.FLOAT32);
        NDArray embedding = source.tensor(EMBEDDING);
        NDList weights = new NDList(embedding, source.tensor(NORM));
        weights.add(config.tieWordEmbeddings() ? embedding : source.tensor(HEAD));
        weights.add(none);
        for (int layer = 0; layer < config.numLayers(); ++layer) {
            NDArray[] tensors = new NDArray[LAYER.length];
            for (int i = 0; i < LAYER.length; ++i) {
                String full = inLayer(layer, LAYER[i]);
                tensors[i] = source.has(full) ? source.tensor(full) : none;
            }
            if (fused) {
                for (int[] places : JOINED) {
                    join(tensors, places, none);
                }
            }
            weights.addAll(Arrays.asList(tensors));
        }
        return weights;
    }

    /** Bytes of memory that all of them take on a CPU. */
    long memory(LlamaConfig config) {
        long bytes = source.memory(EMBEDDING) + source.memory(NORM);
        bytes += config.tieWordEmbeddings() ? 0 : source.memory(HEAD);
        for (int layer = 0; layer < config.numLayers(); ++layer) {
            for (String name : LAYER) {
                String full = inLayer(layer, name);
                bytes += source.has(full) ? source.memory(full) : 0;
            }
        }
        return bytes;
    }

    private static String inLayer(int layer, String name) {
        return "model.layers." + layer + "." + name;
    }

    private void join(NDArray[] tensors, int[] places, NDArray none) {
        NDList parts = new NDList();
        for (int place : places) {
            if (tensors[place] != none) {
                parts.add(tensors[place]);
            }
        }
        if (parts.size() != places.length) {
            return;
        }
        tensors[places[0]] = operators.join(manager, parts);
        for (int i = 1; i < places.length; ++i) {
            tensors[places[i]] = none;
        }
        parts.close();
    }
}
