/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import ai.djl.MalformedModelException;
import ai.djl.repository.zoo.ZooModel;
import java.io.FileNotFoundException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;

/** Damaged and unsuitable model directories. */
final class BadCheckpoints {

    private static final String CONFIG = "config.json";
    private static final String WEIGHTS = "model.safetensors";
    private static final String Q_PROJ = "model.layers.0.self_attn.q_proj.weight";

    private BadCheckpoints() {}

    /** Loads the model after something was done to its files. */
    private static BadInput<SmallModel> damage(
            String name, BadInput.Action<SmallModel> damage, String... fragments) {
        return BadInput.of(
                name,
                MalformedModelException.class,
                model -> {
                    damage.run(model);
                    model.load(Map.of()).close();
                },
                fragments);
    }

    /** Loads the model with a value of config.json changed. */
    private static BadInput<SmallModel> config(String key, String json, String... fragments) {
        return damage("config.json: " + key + " " + json, m -> m.config(key, json), fragments);
    }

    private static BadInput<SmallModel> absent(
            String name, BadInput.Action<SmallModel> damage, String... fragments) {
        return BadInput.of(
                name,
                FileNotFoundException.class,
                model -> {
                    damage.run(model);
                    model.load(Map.of()).close();
                },
                fragments);
    }

    static Stream<BadInput<SmallModel>> table() {
        return Stream.of(files(), tensors(), configs()).flatMap(s -> s);
    }

    private static Stream<BadInput<SmallModel>> files() {
        return Stream.of(
                absent(
                        "no config.json",
                        m -> m.delete(CONFIG),
                        "No config.json in ",
                        "a HuggingFace model directory is needed"),
                absent(
                        "no weights",
                        m -> m.delete(WEIGHTS),
                        "No *.safetensors in ",
                        "a HuggingFace model directory is needed"),
                absent(
                        "weights of another format",
                        m -> m.delete(WEIGHTS).write("pytorch_model.bin", "x"),
                        "only [pytorch_model.bin]",
                        "convert them to safetensors"),
                damage(
                        "config.json is not JSON",
                        m -> m.write(CONFIG, "{\"hidden_size\": 64,"),
                        CONFIG,
                        "is not valid JSON"),
                damage(
                        "truncated weights",
                        m -> cut(m.file(WEIGHTS), -1000),
                        "model.safetensors is truncated: tensor ",
                        "Download it again"),
                damage(
                        "weights that are a web page",
                        m -> m.write(WEIGHTS, "<html><body>404 Not Found</body></html>"),
                        WEIGHTS,
                        "header length"),
                damage(
                        "a shard is missing",
                        m ->
                                m.replaceBy("sharded")
                                        .delete(WEIGHTS)
                                        .delete("model-00002-of-00003.safetensors"),
                        "model.safetensors.index.json places tensor ",
                        "in model-00002-of-00003.safetensors, but there is no such file",
                        "download it"),
                damage(
                        "bytes after the weights",
                        m -> cut(m.file(WEIGHTS), 16),
                        "16 bytes follow the last tensor",
                        "the file is damaged"));
    }

    private static void cut(Path file, int change) throws Exception {
        byte[] bytes = Files.readAllBytes(file);
        Files.write(file, Arrays.copyOf(bytes, bytes.length + change));
    }

    private static Stream<BadInput<SmallModel>> tensors() {
        return Stream.of(
                damage(
                        "a tensor is missing",
                        m -> rename(m, Q_PROJ, Q_PROJ.replace("q_proj", "r_proj")),
                        WEIGHTS + ": tensor " + Q_PROJ + " [128, 64] is missing",
                        "config.json asks for 21 tensors, 21 were found"),
                damage(
                        "a tensor too many",
                        m -> m.config("num_hidden_layers", "1"),
                        "tensor model.layers.1.",
                        "is no part of a LlamaForCausalLM as config.json describes it"),
                damage(
                        "a tensor of another shape",
                        m -> m.config("intermediate_size", "48"),
                        "mlp.gate_proj.weight has the shape [96, 64]",
                        "but config.json makes it [48, 64]"),
                damage(
                        "a tensor of another type",
                        m -> replace(m, "\"F32\",\"shape\":[128,64]", "\"I32\",\"shape\":[128,64]"),
                        "has the dtype int32, which is not supported",
                        "weights must be F32, F16 or BF16"),
                damage(
                        "an output that is not tied",
                        m -> m.config("tie_word_embeddings", "true"),
                        "lm_head.weight differs from model.embed_tokens.weight",
                        "tie_word_embeddings true"));
    }

    private static void rename(SmallModel model, String from, String to) throws Exception {
        replace(model, "\"" + from + "\"", "\"" + to + "\"");
    }

    /** Replaces text of the header by text of the same length. */
    private static void replace(SmallModel model, String from, String to) throws Exception {
        byte[] bytes = Files.readAllBytes(model.file(WEIGHTS));
        String text = new String(bytes, StandardCharsets.ISO_8859_1);
        if (from.length() != to.length() || !text.contains(from)) {
            throw new IllegalArgumentException(from + " is not in the header or not as long");
        }
        Files.writeString(model.file(WEIGHTS), text.replace(from, to), StandardCharsets.ISO_8859_1);
    }

    private static Stream<BadInput<SmallModel>> configs() {
        return Stream.of(
                config(
                        "architectures",
                        "[\"GPT2LMHeadModel\"]",
                        "names [GPT2LMHeadModel], which is not supported",
                        "LlamaForCausalLM or MistralForCausalLM"),
                config(
                        "quantization_config",
                        "{\"quant_method\": \"gptq\"}",
                        "the weights are quantized (gptq), which is not supported",
                        "choose the F32, F16 or BF16 checkpoint"),
                config("hidden_act", "\"gelu\"", "hidden_act must be \"silu\", but is \"gelu\""),
                config("num_key_value_heads", "3", "must divide num_attention_heads 2"),
                config("head_dim", "63", "head_dim must be even", "63"),
                config("vocab_size", "0", "vocab_size must be a positive integer, but is 0"),
                config("rms_norm_eps", "null", "rms_norm_eps is missing"),
                config(
                        "rope_scaling",
                        "{\"rope_type\": \"longrope\", \"factor\": 4}",
                        "must be one of default, linear, llama3, yarn, dynamic",
                        "but is \"longrope\""),
                damage(
                        "an active sliding window",
                        m ->
                                m.config("architectures", "[\"MistralForCausalLM\"]")
                                        .config("sliding_window", "128"),
                        "sliding_window must be null or at least max_position_embeddings 512",
                        "but is 128"),
                BadInput.of(
                        "heads that can not be rotated",
                        IllegalArgumentException.class,
                        m -> {
                            m.replaceBy("gqa3-tied").config("head_dim", "96");
                            m.config("num_attention_heads", "6").config("num_key_value_heads", "2");
                            m.load(Map.of("kv_cache_dtype", "auto")).close();
                            m.load(Map.of("kv_cache_dtype", "rotatekv4")).close();
                        },
                        "kv_cache_dtype rotatekv4 needs a head_dim that is a power of two",
                        "the model's is 96",
                        "Set kv_cache_dtype=fp16 or auto"),
                BadInput.of(
                        "dynamic RoPE beyond the original length",
                        IllegalArgumentException.class,
                        m -> {
                            m.replaceBy("rope-dynamic");
                            try (ZooModel<?, ?> model = m.load(Map.of())) {
                                int[] prompt = SmallModel.prompt(129, 1);
                                SmallModel.languageModel(model).prefill(List.of(prompt));
                            }
                        },
                        "A sequence of 129 tokens is beyond the original length 128",
                        "use at most 128 tokens, or a checkpoint with linear, llama3 or yarn"));
    }
}
