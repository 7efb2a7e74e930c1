/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.BaseModel;
import ai.djl.MalformedModelException;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.OptionNames;
import ai.djl.kvquant.calibrate.CalibratedOptions;
import ai.djl.kvquant.generate.BatchLimits;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.nn.Block;
import java.io.IOException;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Stream;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** A DJL model whose block is a LLaMA checkpoint with its cache. */
final class KvQuantModel extends BaseModel {

    private static final Logger logger = LoggerFactory.getLogger(KvQuantModel.class);

    private static final String DTYPE = "dtype";

    /** PyTorch engine settings under which an in-place cache gives wrong results. */
    private static final List<String> REFUSED_PROPERTIES =
            List.of("ai.djl.pytorch.enable_cuda_stream", "ai.djl.pytorch.use_mkldnn");

    private static final OptionNames NAMES =
            new OptionNames(
                    Stream.of(List.of(DTYPE), HandleOptions.NAMES, BatchOptions.NAMES)
                            .flatMap(List::stream)
                            .toList());

    KvQuantModel(String name, NDManager manager) {
        super(name);
        this.manager = manager;
        manager.setName("kvQuantModel");
        dataType = DataType.FLOAT32;
    }

    /** {@inheritDoc} */
    @Override
    public void load(Path modelPath, String prefix, Map<String, ?> options)
            throws IOException, MalformedModelException {
        setModelDir(modelPath);
        for (String property : REFUSED_PROPERTIES) {
            if (Boolean.getBoolean(property)) {
                throw new IllegalArgumentException(
                        "The engine KvQuant can not run with -D"
                                + property
                                + "=true, which does not keep the order of writes to the KV cache."
                                + " Remove it.");
            }
        }
        if (wasLoaded) {
            throw new IllegalStateException(
                    "The model " + getName() + " is loaded already; close it and create another.");
        }
        Map<String, String> settings = settings(options);
        NAMES.requireSpelling(settings.keySet());
        HandleOptions handles = HandleOptions.of(settings);
        Optional<Path> traced = TracedModel.find(modelDir, prefix == null ? modelName : prefix);
        if (traced.isPresent()) {
            loadTraced(traced.get(), settings, handles);
            return;
        }
        CacheOptions cacheOptions = new CacheOptions(settings);
        BatchLimits limits = BatchOptions.read(settings, cacheOptions.maxBatchSize());
        WeightType weightType = WeightType.parse(settings.getOrDefault(DTYPE, "auto"));
        LlamaModel llama = LlamaModel.load(manager, modelDir, weightType);
        try {
            LlamaLanguageModel model =
                    llama.withCache(new CalibratedOptions(llama, modelDir).complete(cacheOptions));
            finish(new KvQuantBlock(model, handles, limits), settings);
            logLoaded(model);
        } catch (IOException | MalformedModelException | RuntimeException | Error e) {
            // DJL does not close a model that it could not load.
            llama.close();
            throw e;
        }
    }

    private void loadTraced(Path file, Map<String, String> settings, HandleOptions handles) {
        if (manager.getDevice().isGpu()) {
            throw new IllegalArgumentException(
                    "Traced models run on CPUs only, but the device is "
                            + manager.getDevice()
                            + ". Use Device.cpu(), or the HuggingFace checkpoint of the model.");
        }
        NDManager ofModel = manager.newSubManager();
        try {
            TracedRunner runner = TracedModel.load(ofModel, file, settings);
            finish(new KvQuantTracedBlock(runner, handles), settings);
            logger.info(
                    "{}: traced model {}, kv_cache_dtype {} between calls, room for {} tokens",
                    getName(),
                    file.getFileName(),
                    runner.cache().options().dtype().name(),
                    runner.cache().capacity());
        } catch (RuntimeException | Error e) {
            ofModel.close();
            throw e;
        }
    }

    private void finish(Block loaded, Map<String, String> settings) {
        // Where translators find options, too.
        settings.forEach(this::setProperty);
        block = loaded;
        wasLoaded = true;
    }

    /** Ends the requests in progress, waits for other calls, then frees weights and cache. */
    @Override
    public void close() {
        if (block instanceof KvQuantBlock loaded) {
            loaded.scheduler().close();
        }
        if (block instanceof CachedBlock loaded) {
            loaded.close();
        }
        super.close();
    }

    /** Options and arguments alike; DJL makes arguments the model's properties. Options win. */
    private Map<String, String> settings(Map<String, ?> options) {
        Map<String, String> settings = new HashMap<>(getProperties());
        if (options != null) {
            options.forEach((name, value) -> settings.put(name, String.valueOf(value)));
        }
        return settings;
    }

    private void logLoaded(LlamaLanguageModel model) {
        double perToken = model.cache().bytesPerToken();
        long fp16 = model.cache().geometry().fp16BytesPerToken();
        logger.info(
                "{}: kv_cache_dtype {}, {} bits per key, {} per value, {} KiB per token (fp16:"
                        + " {}), room for {} tokens; dtype {}, operators {} on {}",
                getName(),
                model.cache().options().dtype().name(),
                model.cache().bitsPerKey(),
                model.cache().bitsPerValue(),
                String.format(Locale.ROOT, "%.2f", perToken / 1024),
                String.format(Locale.ROOT, "%.2f", fp16 / 1024.0),
                model.cache().capacity(),
                model.model().weightType(),
                model.model().operators().name(),
                model.model().device());
    }
}
