/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.MalformedModelException;
import ai.djl.ndarray.types.DataType;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.nio.charset.MalformedInputException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.OptionalInt;

/**
 * The geometry of a LLaMA model as its {@code config.json} states it, checked.
 *
 * <p>Accepted are {@code LlamaForCausalLM} and {@code MistralForCausalLM} without an active sliding
 * window. What HuggingFace transformers would compute differently from this library (other
 * architectures and activations, quantized weights, partial rotary embeddings) is refused with a
 * {@link MalformedModelException} that names the file and the key. Instances are immutable.
 *
 * @param architecture {@code LlamaForCausalLM} or {@code MistralForCausalLM}
 * @param hiddenSize the width of the residual stream
 * @param intermediateSize the width of the MLP
 * @param numLayers the number of decoder layers
 * @param numHeads the number of query heads
 * @param numKvHeads the number of key and value heads; divides {@code numHeads}
 * @param headDim the width of one head, even
 * @param vocabSize the number of rows of the token embedding
 * @param maxPositionEmbeddings the longest sequence, in tokens, that the checkpoint declares
 * @param rmsNormEps the epsilon of every RMS norm
 * @param tieWordEmbeddings whether the output projection is the token embedding
 * @param attentionBias whether the query, key, value and output projections have biases
 * @param mlpBias whether the gate, up and down projections have biases
 * @param dtype the type in which the checkpoint declares its weights: FLOAT32, FLOAT16 or BFLOAT16;
 *     the files decide, see {@link Checkpoint#dtypes()}
 * @param rope the rotary position embedding
 * @param bosTokenId the token that starts a text, if there is one
 * @param eosTokenIds the tokens that end a text; {@code generation_config.json} may name others
 */
public record LlamaConfig(
        String architecture,
        int hiddenSize,
        int intermediateSize,
        int numLayers,
        int numHeads,
        int numKvHeads,
        int headDim,
        int vocabSize,
        int maxPositionEmbeddings,
        double rmsNormEps,
        boolean tieWordEmbeddings,
        boolean attentionBias,
        boolean mlpBias,
        DataType dtype,
        RopeConfig rope,
        OptionalInt bosTokenId,
        List<Integer> eosTokenIds) {

    private static final String FILE = "config.json";
    private static final String LLAMA = "LlamaForCausalLM";
    private static final String MISTRAL = "MistralForCausalLM";

    /** What transformers takes for a MistralForCausalLM that does not mention its window. */
    private static final int MISTRAL_SLIDING_WINDOW = 4096;

    /**
     * Reads {@code config.json} of a HuggingFace model directory.
     *
     * @param modelDir the directory
     * @return the configuration
     * @throws FileNotFoundException if the directory or its {@code config.json} does not exist
     * @throws MalformedModelException if the file is broken or describes a model that is not
     *     supported
     * @throws IOException if the file cannot be read
     */
    public static LlamaConfig load(Path modelDir) throws IOException, MalformedModelException {
        ModelFiles.requireDirectory(modelDir);
        Path file = modelDir.resolve(FILE);
        if (!Files.isRegularFile(file)) {
            throw new FileNotFoundException(
                    "No "
                            + FILE
                            + " in "
                            + modelDir
                            + "; a HuggingFace model directory is needed.");
        }
        try {
            return parse(Files.readString(file), file.toString());
        } catch (MalformedInputException e) {
            throw new MalformedModelException(file + " is not valid UTF-8.", e);
        }
    }

    /**
     * Reads the text of a {@code config.json}.
     *
     * @param json the text
     * @param source the name of the text used in errors, usually the file
     * @return the configuration
     * @throws MalformedModelException if the text is broken or describes a model that is not
     *     supported
     */
    public static LlamaConfig parse(String json, String source) throws MalformedModelException {
        JsonSection config = JsonSection.parse(json, source);
        String architecture = architecture(config);
        boolean llama = LLAMA.equals(architecture);
        refuseUnsupported(config);
        int maxPosition = config.positiveInt("max_position_embeddings");
        if (!llama) {
            refuseSlidingWindow(config, maxPosition);
        }
        int numHeads = config.positiveInt("num_attention_heads");
        int hiddenSize = config.positiveInt("hidden_size");
        int headDim = headDim(config, hiddenSize, numHeads);
        int vocabSize = config.positiveInt("vocab_size");
        return new LlamaConfig(
                architecture,
                hiddenSize,
                config.positiveInt("intermediate_size"),
                config.positiveInt("num_hidden_layers"),
                numHeads,
                numKvHeads(config, numHeads),
                headDim,
                vocabSize,
                maxPosition,
                config.positiveNumber("rms_norm_eps"),
                config.bool("tie_word_embeddings", false),
                llama && config.bool("attention_bias", false),
                llama && config.bool("mlp_bias", false),
                dtype(config),
                RopeConfig.parse(config, headDim, maxPosition),
                bosTokenId(config, vocabSize),
                eosTokenIds(config, vocabSize));
    }

    /**
     * Returns how many query heads share one key and value head.
     *
     * @return {@code numHeads / numKvHeads}: 1 for multi-head attention
     */
    public int queryGroups() {
        return numHeads / numKvHeads;
    }

    private static String architecture(JsonSection config) throws MalformedModelException {
        List<String> names;
        if (config.has("architectures")) {
            names = config.strings("architectures");
        } else {
            // transformers itself goes by model_type; old files have nothing else
            String type = config.string("model_type");
            names = List.of("mistral".equals(type) ? MISTRAL : "llama".equals(type) ? LLAMA : type);
        }
        if (names.size() == 1 && (names.contains(LLAMA) || names.contains(MISTRAL))) {
            return names.get(0);
        }
        throw new MalformedModelException(
                config.path("architectures")
                        + " names "
                        + names
                        + ", which is not supported; choose a checkpoint of "
                        + LLAMA
                        + " or "
                        + MISTRAL
                        + ".");
    }

    private static void refuseUnsupported(JsonSection config) throws MalformedModelException {
        for (String key : new String[] {"quantization_config", "compression_config"}) {
            if (config.has(key)) {
                String method = config.object(key).string("quant_method", "unknown");
                throw new MalformedModelException(
                        config.path(key)
                                + " says that the weights are quantized ("
                                + method
                                + "), which is not supported; choose the F32, F16 or BF16"
                                + " checkpoint of this model.");
            }
        }
        if (!"silu".equals(config.string("hidden_act", "silu"))) {
            throw config.wrong("hidden_act", "must be \"silu\"");
        }
    }

    /** A window that no sequence outgrows changes nothing. */
    private static void refuseSlidingWindow(JsonSection config, int maxPosition)
            throws MalformedModelException {
        if (!config.mentions("sliding_window")) {
            if (MISTRAL_SLIDING_WINDOW < maxPosition) {
                throw new MalformedModelException(
                        config.path("sliding_window")
                                + " is missing, which for "
                                + MISTRAL
                                + " means 4096, below max_position_embeddings "
                                + maxPosition
                                + "; sliding windows are not supported. Write null if the model"
                                + " has none.");
            }
        } else if (config.has("sliding_window")
                && config.positiveInt("sliding_window") < maxPosition) {
            throw config.wrong(
                    "sliding_window",
                    "must be null or at least max_position_embeddings "
                            + maxPosition
                            + " (sliding windows are not supported)");
        }
    }

    private static int headDim(JsonSection config, int hiddenSize, int numHeads)
            throws MalformedModelException {
        int headDim = config.positiveInt("head_dim", hiddenSize / numHeads);
        if (!config.has("head_dim") && hiddenSize % numHeads != 0) {
            throw config.wrong(
                    "hidden_size",
                    "must be divisible by num_attention_heads "
                            + numHeads
                            + " where head_dim is absent");
        }
        if (headDim % 2 != 0) {
            throw new MalformedModelException(
                    config.path("head_dim")
                            + " must be even for rotary position embeddings, but is "
                            + headDim
                            + ".");
        }
        if ((long) headDim * numHeads > Integer.MAX_VALUE) {
            throw config.wrong("num_attention_heads", "is too large for head_dim " + headDim);
        }
        return headDim;
    }

    private static int numKvHeads(JsonSection config, int numHeads) throws MalformedModelException {
        int numKvHeads = config.positiveInt("num_key_value_heads", numHeads);
        if (numHeads % numKvHeads != 0) {
            throw config.wrong(
                    "num_key_value_heads", "must divide num_attention_heads " + numHeads);
        }
        return numKvHeads;
    }

    private static DataType dtype(JsonSection config) throws MalformedModelException {
        String key = config.has("dtype") ? "dtype" : "torch_dtype";
        return switch (config.string(key, "float32")) {
            case "float32" -> DataType.FLOAT32;
            case "float16" -> DataType.FLOAT16;
            case "bfloat16" -> DataType.BFLOAT16;
            default -> throw config.wrong(key, "must be \"float32\", \"float16\" or \"bfloat16\"");
        };
    }

    /** Absent means the default of transformers, 1; {@code null} means none. */
    private static OptionalInt bosTokenId(JsonSection config, int vocabSize)
            throws MalformedModelException {
        if (config.has("bos_token_id")) {
            List<Integer> ids = config.tokenIds("bos_token_id", vocabSize);
            if (ids.size() != 1) {
                throw config.wrong("bos_token_id", "must be one token id");
            }
            return OptionalInt.of(ids.get(0));
        }
        boolean none = config.mentions("bos_token_id") || vocabSize <= 1;
        return none ? OptionalInt.empty() : OptionalInt.of(1);
    }

    /** Absent means the default of transformers, 2; {@code null} means none. */
    private static List<Integer> eosTokenIds(JsonSection config, int vocabSize)
            throws MalformedModelException {
        if (config.has("eos_token_id")) {
            return config.tokenIds("eos_token_id", vocabSize);
        }
        boolean none = config.mentions("eos_token_id") || vocabSize <= 2;
        return none ? List.of() : List.of(2);
    }
}
