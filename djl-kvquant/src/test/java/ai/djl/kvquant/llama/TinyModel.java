/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.safetensors.RawSafetensors;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;

/** A model of one layer written by hand: its configuration and its tensors, both to be damaged. */
final class TinyModel {

    static final String Q_PROJ = "model.layers.0.self_attn.q_proj.weight";

    /** Llama, 1 layer, hidden 8, intermediate 12, 2 heads on 1 kv head, head_dim 4, vocab 10. */
    final JsonObject config =
            JsonParser.parseString(
                            """
                            {"architectures": ["LlamaForCausalLM"], "hidden_size": 8,
                             "intermediate_size": 12, "num_hidden_layers": 1,
                             "num_attention_heads": 2, "num_key_value_heads": 1,
                             "vocab_size": 10, "max_position_embeddings": 32,
                             "rms_norm_eps": 1e-5, "torch_dtype": "float32"}
                            """)
                    .getAsJsonObject();

    final Map<String, Tensor> tensors = new LinkedHashMap<>();

    /** A tensor with data that differ from those of every other. */
    record Tensor(String dtype, long[] shape, byte[] data) {
        static Tensor of(String dtype, int seed, long... shape) {
            int size = dtype.endsWith("32") ? 4 : dtype.startsWith("F8") ? 1 : 2;
            int bytes = (int) Arrays.stream(shape).reduce(size, (a, b) -> a * b);
            byte[] data = new byte[bytes];
            for (int i = 0; i < bytes; i++) {
                data[i] = (byte) (31 * seed + i);
            }
            return new Tensor(dtype, shape, data);
        }
    }

    TinyModel() {
        add("model.embed_tokens.weight", 10, 8);
        add("model.layers.0.input_layernorm.weight", 8);
        add(Q_PROJ, 8, 8);
        add("model.layers.0.self_attn.k_proj.weight", 4, 8);
        add("model.layers.0.self_attn.v_proj.weight", 4, 8);
        add("model.layers.0.self_attn.o_proj.weight", 8, 8);
        add("model.layers.0.post_attention_layernorm.weight", 8);
        add("model.layers.0.mlp.gate_proj.weight", 12, 8);
        add("model.layers.0.mlp.up_proj.weight", 12, 8);
        add("model.layers.0.mlp.down_proj.weight", 8, 12);
        add("model.norm.weight", 8);
        add("lm_head.weight", 10, 8);
    }

    void add(String name, long... shape) {
        add("F32", name, shape);
    }

    void add(String dtype, String name, long... shape) {
        tensors.put(name, Tensor.of(dtype, tensors.size(), shape));
    }

    LlamaConfig parsedConfig() throws Exception {
        return LlamaConfig.parse(config.toString(), "config.json");
    }

    Checkpoint open(Path dir) throws Exception {
        return Checkpoint.open(dir, parsedConfig());
    }

    void write(Path dir) throws IOException {
        write(dir.resolve("model.safetensors"), tensors);
    }

    static void write(Path file, Map<String, Tensor> tensors) throws IOException {
        StringBuilder header = new StringBuilder("{\"__metadata__\":{\"format\":\"pt\"}");
        ByteArrayOutputStream data = new ByteArrayOutputStream();
        tensors.forEach(
                (name, tensor) -> {
                    int begin = data.size();
                    data.writeBytes(tensor.data);
                    header.append(
                            ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%d,%d]}"
                                    .formatted(
                                            name,
                                            tensor.dtype,
                                            Arrays.toString(tensor.shape),
                                            begin,
                                            data.size()));
                });
        header.append('}');
        while (header.length() % 8 != 0) {
            header.append(' ');
        }
        RawSafetensors.write(file, header.toString(), data.toByteArray());
    }

    /** The first tensors up to and without the q projection in shard 1, the others in shard 2. */
    void writeShards(Path dir, String index) throws IOException {
        Map<String, Tensor> first = new LinkedHashMap<>();
        Map<String, Tensor> second = new LinkedHashMap<>();
        JsonObject weightMap = new JsonObject();
        for (Map.Entry<String, Tensor> entry : tensors.entrySet()) {
            boolean toFirst = second.isEmpty() && !entry.getKey().equals(Q_PROJ);
            (toFirst ? first : second).put(entry.getKey(), entry.getValue());
            weightMap.addProperty(entry.getKey(), shard(toFirst ? 1 : 2));
        }
        write(dir.resolve(shard(1)), first);
        write(dir.resolve(shard(2)), second);
        if (index != null) {
            JsonObject root = new JsonObject();
            root.add("weight_map", weightMap);
            Files.writeString(dir.resolve(index), root.toString());
        }
    }

    static String shard(int number) {
        return "model-0000%d-of-00002.safetensors".formatted(number);
    }
}
