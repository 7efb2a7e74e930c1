/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.MalformedModelException;
import java.util.Arrays;
import java.util.stream.Collectors;

/**
 * Shapes of well-known models, which can be loaded with random weights: to see what fits and how
 * fast it is before a checkpoint is downloaded. What they generate means nothing.
 */
public enum RandomModel {
    /** LLaMA-2 7B. */
    LLAMA_2_7B("llama-2-7b", "float16", 4096, 11008, 32, 32, 32, 32000, 10000, false),
    /** LLaMA-2 13B. */
    LLAMA_2_13B("llama-2-13b", "float16", 5120, 13824, 40, 40, 40, 32000, 10000, false),
    /** Llama 3 8B. */
    LLAMA_3_8B("llama-3-8b", "bfloat16", 4096, 14336, 32, 32, 8, 128256, 500000, false),
    /** Llama 3.2 1B. */
    LLAMA_3_2_1B("llama-3.2-1b", "bfloat16", 2048, 8192, 16, 32, 8, 128256, 500000, true),
    /** SmolLM2 135M. */
    SMOLLM2_135M("smollm2-135m", "bfloat16", 576, 1536, 30, 9, 3, 49152, 100000, true);

    /** What names of such models begin with. */
    public static final String PREFIX = "random:";

    /** Longer than what fits: their context is a matter of memory alone. */
    private static final int CONTEXT = 1 << 22;

    private final String name;
    private final String json;

    RandomModel(
            String name,
            String dtype,
            int hidden,
            int inner,
            int layers,
            int heads,
            int kvHeads,
            int vocabulary,
            int theta,
            boolean tied) {
        this.name = name;
        json =
                """
                {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
                "hidden_act": "silu", "torch_dtype": "%s", "hidden_size": %d,
                "intermediate_size": %d, "num_hidden_layers": %d, "num_attention_heads": %d,
                "num_key_value_heads": %d, "vocab_size": %d, "rope_theta": %d,
                "tie_word_embeddings": %s, "max_position_embeddings": %d, "rms_norm_eps": 1e-5,
                "bos_token_id": 1, "eos_token_id": 2}
                """
                        .formatted(
                                dtype,
                                hidden,
                                inner,
                                layers,
                                heads,
                                kvHeads,
                                vocabulary,
                                theta,
                                tied,
                                CONTEXT);
    }

    /**
     * Tells whether a name asks for a random model.
     *
     * @param name what is given as a model
     * @return whether it begins with {@link #PREFIX}
     */
    public static boolean isRandom(String name) {
        return name != null && name.startsWith(PREFIX);
    }

    /**
     * Finds a model by its name.
     *
     * @param name for example random:llama-2-13b
     * @return the model
     * @throws IllegalArgumentException if there is no such model
     */
    public static RandomModel parse(String name) {
        for (RandomModel model : values()) {
            if (model.toString().equals(name)) {
                return model;
            }
        }
        throw new IllegalArgumentException(
                "There is no model "
                        + name
                        + "; allowed: "
                        + Arrays.stream(values())
                                .map(RandomModel::toString)
                                .collect(Collectors.joining(", "))
                        + ".");
    }

    /**
     * Returns the configuration.
     *
     * @return the configuration, with a context of 4 million tokens
     */
    public LlamaConfig config() {
        try {
            return LlamaConfig.parse(json, toString());
        } catch (MalformedModelException e) {
            throw new IllegalStateException(e);
        }
    }

    /**
     * Returns the name.
     *
     * @return for example random:llama-2-13b
     */
    @Override
    public String toString() {
        return PREFIX + name;
    }
}
