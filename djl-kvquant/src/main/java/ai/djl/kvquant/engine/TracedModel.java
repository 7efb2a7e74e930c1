/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.kvquant.cache.CacheDtype;
import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.kvquant.cache.CacheMethod;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Stream;

/** How a TorchScript file with DJL's contract for causal language models is found and loaded. */
final class TracedModel {

    /** The longest sequence, for which a TorchScript file has no place. */
    static final String MAX_LENGTH = "max_model_len";

    private static final String DTYPE = "dtype";
    private static final String SINKS = "kv_sink_tokens";
    private static final String FIRST_SINKS = "4";

    private TracedModel() {}

    /** The file that DJL's PyTorch engine would load, unless the directory has a checkpoint. */
    static Optional<Path> find(Path model, String name) throws IOException {
        if (Files.isRegularFile(model)) {
            return Optional.of(model).filter(file -> file.toString().endsWith(".pt"));
        }
        if (!Files.isDirectory(model) || hasCheckpoint(model)) {
            return Optional.empty();
        }
        return Stream.of(name, model.getFileName().toString(), "model")
                .map(prefix -> model.resolve(prefix.endsWith(".pt") ? prefix : prefix + ".pt"))
                .filter(Files::isRegularFile)
                .findFirst();
    }

    private static boolean hasCheckpoint(Path directory) throws IOException {
        try (Stream<Path> files = Files.list(directory)) {
            return files.anyMatch(file -> file.toString().endsWith(".safetensors"));
        }
    }

    /**
     * Loads a model.
     *
     * @param manager what closes the model and its cache
     * @param file the TorchScript file
     * @param settings options and arguments; the sizes are those that PtGptTranslatorFactory reads
     * @return what runs it
     * @throws IllegalArgumentException if a setting has an impossible value
     */
    static TracedRunner load(NDManager manager, Path file, Map<String, String> settings) {
        requireTypeOfTrace(settings);
        BatchOptions.requireNone(settings);
        CacheOptions options = cacheOptions(settings);
        int heads = positive(settings, "numAttentionHeads", 12);
        int headDim = positive(settings, "kvDim", 64);
        CacheGeometry geometry =
                new CacheGeometry(
                        positive(settings, "numLayers", 12),
                        heads,
                        heads,
                        headDim,
                        1 / Math.sqrt(headDim),
                        // Keys have their positions in them: no angle.
                        new double[headDim / 2],
                        positive(settings, MAX_LENGTH, 4096));
        return new TracedRunner(manager, file, geometry, options);
    }

    private static void requireTypeOfTrace(Map<String, String> settings) {
        String dtype = settings.getOrDefault(DTYPE, "auto");
        if (WeightType.parse(dtype) != WeightType.AUTO) {
            throw new IllegalArgumentException(
                    "dtype is "
                            + dtype
                            + ", but a traced model's weights keep the type that they were traced"
                            + " in; remove it, or set auto.");
        }
    }

    private static CacheOptions cacheOptions(Map<String, String> settings) {
        Map<String, String> completed = new HashMap<>(settings);
        CacheDtype dtype = CacheDtype.parse(settings.getOrDefault("kv_cache_dtype", "auto"));
        if (dtype.keyMethod() == CacheMethod.ROTATEKV) {
            // Massive activations are found in what layers get, which a graph does not show.
            completed.putIfAbsent(SINKS, FIRST_SINKS);
            if ("massive".equals(completed.get(SINKS))) {
                throw new IllegalArgumentException(
                        "kv_sink_tokens is massive, but a traced model does not show the layers'"
                                + " inputs; set the number of first tokens to keep exactly.");
            }
        }
        CacheOptions options = new CacheOptions(completed);
        if (options.needsCalibration() || options.calibrationFile().isPresent()) {
            throw new IllegalArgumentException(
                    "kv_cache_dtype "
                            + dtype.name()
                            + " with these options needs a calibration, which a traced model can"
                            + " not have. Choose one of auto, fp16, rotatekv4, rotatekv3,"
                            + " rotatekv2, or load the safetensors checkpoint.");
        }
        return options;
    }

    private static int positive(Map<String, String> settings, String name, int usual) {
        String text = settings.getOrDefault(name, Integer.toString(usual));
        try {
            // Arguments from JSON are written as 12.0.
            double value = Double.parseDouble(text);
            if (value >= 1 && value == (int) value) {
                return (int) value;
            }
        } catch (NumberFormatException e) {
            // Refused below.
        }
        throw new IllegalArgumentException(
                name + " is '" + text + "'; allowed: whole numbers from 1.");
    }
}
