/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.Device;
import ai.djl.MalformedModelException;
import ai.djl.engine.Engine;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.calibrate.CalibratedOptions;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.RandomModel;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.kvquant.translate.Tokenizers;
import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.function.IntConsumer;

/** The model that a command works with, and its tokenizer. */
final class Session implements AutoCloseable {

    private final Path directory;
    private final NDManager manager;
    private final LlamaModel model;
    private HuggingFaceTokenizer tokenizer;

    private Session(Path directory, NDManager manager, LlamaModel model) {
        this.directory = directory;
        this.manager = manager;
        this.model = model;
    }

    static Session open(Kvq kvq) throws IOException, MalformedModelException {
        WeightType weightType = WeightType.parse(kvq.dtype);
        if (RandomModel.isRandom(kvq.model)) {
            RandomModel random = RandomModel.parse(kvq.model);
            return load(
                    null,
                    kvq.model,
                    Devices.parse(kvq.device),
                    manager -> LlamaModel.random(manager, random, weightType));
        }
        Device device = Devices.parse(kvq.device);
        Path directory = kvq.model == null ? DefaultModel.fetch() : Path.of(kvq.model);
        if (!Files.isDirectory(directory)) {
            throw new IllegalArgumentException(
                    "--model "
                            + directory
                            + " is not a directory; give one that holds config.json,"
                            + " *.safetensors and tokenizer.json.");
        }
        return load(
                directory,
                directory.getFileName().toString(),
                device,
                manager -> LlamaModel.load(manager, directory, weightType));
    }

    /** How a model comes about. */
    private interface Loader {
        LlamaModel load(NDManager manager) throws IOException, MalformedModelException;
    }

    private static Session load(Path directory, String name, Device device, Loader loader)
            throws IOException, MalformedModelException {
        NDManager manager = Engine.getEngine("PyTorch").newBaseManager(device);
        Progress progress = Progress.unbounded("Loading " + name);
        try {
            return new Session(directory, manager, loader.load(manager));
        } catch (IOException | MalformedModelException | RuntimeException | Error e) {
            manager.close();
            throw e;
        } finally {
            progress.close();
        }
    }

    /** The model's directory, or the name of a random one. */
    String name(Kvq kvq) {
        return directory == null ? kvq.model : directory.toString();
    }

    Path directory() {
        if (directory == null) {
            throw new IllegalArgumentException(
                    "A random model has no files, no tokenizer and nothing to say; it is for 'kvq"
                            + " bench' and 'kvq info'.");
        }
        return directory;
    }

    LlamaModel model() {
        return model;
    }

    /** Options with the calibration that they need. */
    CacheOptions complete(CacheOptions options) throws IOException, MalformedModelException {
        Progress[] bar = new Progress[1];
        IntConsumer progress =
                layers -> {
                    if (bar[0] == null) {
                        bar[0] = Progress.of("Calibrating", model.config().numLayers());
                    }
                    bar[0].step();
                };
        try {
            return new CalibratedOptions(model, directory, progress).complete(options);
        } finally {
            if (bar[0] != null) {
                bar[0].close();
            }
        }
    }

    List<CacheOptions> complete(List<CacheOptions> options)
            throws IOException, MalformedModelException {
        List<CacheOptions> completed = new ArrayList<>();
        for (CacheOptions each : options) {
            completed.add(complete(each));
        }
        return completed;
    }

    HuggingFaceTokenizer tokenizer() throws IOException {
        if (tokenizer == null) {
            tokenizer = Tokenizers.load(directory());
        }
        return tokenizer;
    }

    @Override
    public void close() {
        if (tokenizer != null) {
            tokenizer.close();
        }
        model.close();
        manager.close();
    }
}
