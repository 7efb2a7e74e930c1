/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.Device;
import ai.djl.MalformedModelException;
import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.cache.MemoryBudget;
import ai.djl.kvquant.generate.ModelClosedException;
import ai.djl.kvquant.torch.GpuInfo;
import ai.djl.kvquant.torch.Operators;
import ai.djl.kvquant.torch.TorchArchive;
import ai.djl.kvquant.torch.TorchModule;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.nio.file.Path;
import java.util.OptionalLong;

/**
 * The weights of a LLaMA checkpoint and the module that runs them; thread-safe. Several caches may
 * be used with the same weights: {@link #withCache}.
 */
public final class LlamaModel implements AutoCloseable {

    private static final int CHUNK_TOKENS = 512;

    /** Products of matrices are fast on a GPU if they are large. */
    private static final int GPU_CHUNK_TOKENS = 2048;

    private final NDManager manager;
    private final Operators operators;
    private final TorchModule module;
    private final LlamaConfig config;
    private final Graph graph;
    private final boolean random;
    private final WeightType weightType;
    private OptionalLong activationBytes = OptionalLong.empty();

    private LlamaModel(NDManager parent, LlamaConfig config, Weights weights, Graph forced)
            throws IOException, MalformedModelException {
        this.config = config;
        random = weights.checkpoint == null;
        manager = parent.newSubManager();
        try {
            operators = new Operators(manager);
            graph = forced != null ? forced : graph(weights);
            weightType = graph.fused() ? graph.type() : weights.type;
            String methods = new LlamaCode(config, graph).methods();
            module = TorchModule.load(manager, TorchArchive.write(methods));
            LlamaWeights named =
                    new LlamaWeights(manager, operators, source(weights), graph.fused());
            if (!operators.onGpu()) {
                WeightMemory.require(
                        named.memory(config), MemoryBudget.available(), keptType(weights), random);
            }
            NDList tensors = named.read(config);
            operators.releaseCachedMemory();
            module.run(manager, "load", tensors);
        } catch (IOException | RuntimeException | Error e) {
            manager.close();
            throw e;
        }
    }

    /**
     * What is loaded.
     *
     * @param checkpoint the files; null: random numbers
     */
    private record Weights(Checkpoint checkpoint, WeightType type) {}

    private Graph graph(Weights weights) {
        if (!operators.onGpu()) {
            return Graph.CPU;
        }
        return Graph.gpu(weights.type == WeightType.AUTO ? storedType(weights) : weights.type);
    }

    private WeightType storedType(Weights weights) {
        return WeightType.of(
                weights.checkpoint == null
                        ? config.dtype()
                        : weights.checkpoint.entry("model.embed_tokens.weight").dtype());
    }

    private WeightType keptType(Weights weights) {
        return weightType == WeightType.AUTO ? storedType(weights) : weightType;
    }

    private WeightSource source(Weights weights) {
        if (weights.checkpoint == null) {
            return new RandomWeights(manager, operators, config, keptType(weights));
        }
        return new CheckpointWeights(manager, operators, weights.checkpoint, weightType);
    }

    /**
     * Loads a HuggingFace directory.
     *
     * @param manager a manager of the PyTorch engine on the device to use
     * @param directory config.json and *.safetensors
     * @param weightType the type in which weights are kept
     * @return the model
     * @throws IOException if a file can not be read
     * @throws MalformedModelException if the checkpoint is not a complete LLaMA checkpoint
     */
    public static LlamaModel load(NDManager manager, Path directory, WeightType weightType)
            throws IOException, MalformedModelException {
        return load(manager, directory, weightType, null);
    }

    /** With a graph other than that of the device, if it is not null. */
    static LlamaModel load(NDManager manager, Path directory, WeightType weightType, Graph forced)
            throws IOException, MalformedModelException {
        LlamaConfig config = LlamaConfig.load(directory);
        Checkpoint checkpoint = Checkpoint.open(directory, config);
        return new LlamaModel(manager, config, new Weights(checkpoint, weightType), forced);
    }

    /**
     * Makes a model with random weights, on the device.
     *
     * @param manager a manager of the PyTorch engine on the device to use
     * @param model the shape
     * @param weightType the type in which weights are kept
     * @return the model
     */
    public static LlamaModel random(NDManager manager, RandomModel model, WeightType weightType) {
        try {
            return new LlamaModel(manager, model.config(), new Weights(null, weightType), null);
        } catch (IOException | MalformedModelException e) {
            throw new IllegalStateException("nothing was read", e);
        }
    }

    /**
     * Tells whether the weights are random.
     *
     * @return true after {@link #random}
     */
    public boolean isRandom() {
        return random;
    }

    /**
     * Returns the device.
     *
     * @return where weights and caches are
     */
    public Device device() {
        return manager.getDevice();
    }

    /**
     * Returns a language model that runs these weights with a cache of its own.
     *
     * @param options the cache options
     * @return the language model; the caller closes it
     * @throws IllegalArgumentException if the options do not fit the model
     */
    public LlamaLanguageModel withCache(CacheOptions options) {
        long reserved = 0;
        if (operators.onGpu() && !options.hasSize()) {
            reserved = activationBytes();
            // What libtorch keeps for later counts as free.
            operators.releaseCachedMemory();
        }
        return new LlamaLanguageModel(this, newCache(options, reserved));
    }

    /** A cache that by default leaves some bytes of the device free. */
    KvCache newCache(CacheOptions options, long reserved) {
        int bits = graph.type() == WeightType.FP32 ? Float.SIZE : Short.SIZE;
        return new KvCache(manager, operators, geometry(), options, bits, reserved);
    }

    /**
     * Returns the memory that is in use on a GPU, by whomever: weights, caches, and what computing
     * took at most since {@link #releaseCachedMemory}.
     *
     * @return the bytes; 0 on a CPU
     */
    public long gpuBytesUsed() {
        if (!operators.onGpu()) {
            return 0;
        }
        GpuInfo gpu = operators.gpu();
        return gpu.totalBytes() - gpu.freeBytes();
    }

    /** Gives memory of a GPU that libtorch keeps for later back to it. */
    public void releaseCachedMemory() {
        operators.releaseCachedMemory();
    }

    /**
     * Returns the bytes that a cache takes whose options do not say how large it is.
     *
     * @return on a GPU 85 % of what is free besides what computing needs, else 25 % of what is free
     */
    public long cacheBudget() {
        operators.releaseCachedMemory();
        long reserved = operators.onGpu() ? activationBytes() : 0;
        return MemoryBudget.of(operators, reserved).defaultBytes();
    }

    /** Bytes that a chunk of a prompt takes while it is computed; measured once. */
    private synchronized long activationBytes() {
        if (activationBytes.isEmpty()) {
            activationBytes = OptionalLong.of(ActivationMemory.measure(this));
        }
        return activationBytes.getAsLong();
    }

    /** Tokens of all prompts together that one call computes: bounds activations. */
    int chunkTokens() {
        return operators.onGpu() ? GPU_CHUNK_TOKENS : CHUNK_TOKENS;
    }

    /**
     * Returns an evaluator: what the model makes of whole texts with a cache of the given kind.
     *
     * @param options the cache options
     * @param context the longest text, in tokens
     * @return the evaluator; the caller closes it
     * @throws IllegalArgumentException if the options or the context do not fit the model
     */
    public LlamaEvaluator evaluator(CacheOptions options, int context) {
        return new LlamaEvaluator(this, options, context);
    }

    /**
     * Returns the model's configuration.
     *
     * @return the configuration
     */
    public LlamaConfig config() {
        return config;
    }

    /**
     * Returns the operators' settings.
     *
     * @return the operators
     */
    public Operators operators() {
        return operators;
    }

    /**
     * Returns the type in which weights were asked to be kept; on a GPU, in which they are.
     *
     * @return the type
     */
    public WeightType weightType() {
        return weightType;
    }

    /**
     * Returns the sizes that a cache of this model depends on.
     *
     * @return the geometry
     */
    public CacheGeometry geometry() {
        return new CacheGeometry(
                config.numLayers(),
                config.numHeads(),
                config.numKvHeads(),
                config.headDim(),
                LlamaCode.scoreScale(config),
                config.rope().inverseFrequencies(),
                config.rope().contextLength());
    }

    void requireOpen() {
        if (!manager.isOpen()) {
            throw new ModelClosedException("The model is closed; load it again.");
        }
    }

    void requireToken(int id) {
        if (id < 0 || id >= config.vocabSize()) {
            throw new IllegalArgumentException(
                    "Token id "
                            + id
                            + " is outside the vocabulary; allowed: 0 to "
                            + (config.vocabSize() - 1)
                            + ". Is the tokenizer that of the model?");
        }
    }

    NDManager manager() {
        return manager;
    }

    TorchModule module() {
        return module;
    }

    /** Frees weights and caches. */
    @Override
    public void close() {
        manager.close();
    }
}
