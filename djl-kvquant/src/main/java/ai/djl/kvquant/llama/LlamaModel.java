/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.MalformedModelException;
import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.torch.Operators;
import ai.djl.kvquant.torch.TorchArchive;
import ai.djl.kvquant.torch.TorchModule;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.nio.file.Path;

/**
 * The weights of a LLaMA checkpoint and the module that runs them; thread-safe. Several caches may
 * be used with the same weights: {@link #withCache}.
 */
public final class LlamaModel implements AutoCloseable {

    private final NDManager manager;
    private final Operators operators;
    private final TorchModule module;
    private final LlamaConfig config;
    private final Checkpoint checkpoint;
    private final WeightType weightType;

    private LlamaModel(NDManager parent, Path directory, WeightType weightType)
            throws IOException, MalformedModelException {
        this.weightType = weightType;
        config = LlamaConfig.load(directory);
        checkpoint = Checkpoint.open(directory, config);
        manager = parent.newSubManager();
        try {
            operators = new Operators(manager);
            module = TorchModule.load(manager, TorchArchive.write(new LlamaCode(config).methods()));
            NDList weights =
                    new LlamaWeights(manager, operators, checkpoint, weightType).read(config);
            module.run(manager, "load", weights);
        } catch (IOException | RuntimeException | Error e) {
            manager.close();
            throw e;
        }
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
        return new LlamaModel(manager, directory, weightType);
    }

    /**
     * Returns a language model that runs these weights with a cache of its own.
     *
     * @param options the cache options
     * @return the language model; the caller closes it
     * @throws IllegalArgumentException if the options do not fit the model
     */
    public LlamaLanguageModel withCache(CacheOptions options) {
        return new LlamaLanguageModel(this, new KvCache(manager, operators, geometry(), options));
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
     * Returns the type in which weights were asked to be kept.
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
            throw new IllegalStateException("The model is closed; load it again.");
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
