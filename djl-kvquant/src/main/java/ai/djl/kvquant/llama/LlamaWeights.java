/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.safetensors.TensorEntry;
import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.io.IOException;
import java.nio.ByteBuffer;

/** Reads a checkpoint's tensors in the order in which the TorchScript module wants them. */
final class LlamaWeights {

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

    private final NDManager manager;
    private final Operators operators;
    private final Checkpoint checkpoint;
    private final WeightType type;

    LlamaWeights(NDManager manager, Operators operators, Checkpoint checkpoint, WeightType type) {
        this.manager = manager;
        this.operators = operators;
        this.checkpoint = checkpoint;
        this.type = type;
    }

    /**
     * Embedding, final norm, output projection, an empty tensor, then the layers' tensors; absent
     * biases are empty.
     */
    NDList read(LlamaConfig config) throws IOException {
        NDArray none = manager.create(new Shape(0), DataType.FLOAT32);
        NDArray embedding = tensor("model.embed_tokens.weight");
        NDList weights = new NDList(embedding, tensor("model.norm.weight"));
        weights.add(config.tieWordEmbeddings() ? embedding : tensor("lm_head.weight"));
        weights.add(none);
        for (int layer = 0; layer < config.numLayers(); ++layer) {
            for (String name : LAYER) {
                String full = "model.layers." + layer + "." + name;
                weights.add(checkpoint.entries().containsKey(full) ? tensor(full) : none);
            }
        }
        return weights;
    }

    private NDArray tensor(String name) throws IOException {
        TensorEntry entry = checkpoint.entry(name);
        String stored = typeName(entry.dtype());
        ByteBuffer bytes = checkpoint.bytes(name);
        NDArray tensor = operators.wrap(manager, bytes, stored, new Shape(entry.shape()));
        String wanted = type == WeightType.AUTO ? stored : type.tensorType();
        return wanted.equals(stored) ? tensor : operators.convert(manager, tensor, wanted);
    }

    private static String typeName(DataType dtype) {
        return switch (dtype) {
            case FLOAT32 -> "F32";
            case FLOAT16 -> "F16";
            case BFLOAT16 -> "BF16";
            default -> throw new IllegalStateException("Checkpoint let dtype " + dtype + " pass");
        };
    }
}
