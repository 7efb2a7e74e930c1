/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.MalformedModelException;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.translate.Tokenizers;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.function.IntConsumer;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Gives cache options the calibration that they need: from a file, or by calibrating the model on
 * the built-in text.
 */
public final class CalibratedOptions {

    /** Tokens that a model calibrates itself on, at most. */
    static final int SELF_TOKENS = 2048;

    private static final Logger logger = LoggerFactory.getLogger(CalibratedOptions.class);

    private final LlamaModel model;
    private final Path directory;
    private final IntConsumer progress;

    /**
     * Prepares to calibrate a model's options.
     *
     * @param model the model
     * @param directory where it was loaded from; null if the model is random
     */
    public CalibratedOptions(LlamaModel model, Path directory) {
        this(model, directory, layers -> {});
    }

    /**
     * Prepares to calibrate a model's options.
     *
     * @param model the model
     * @param directory where it was loaded from; null if the model is random
     * @param progress told the number of layers that are done when the model calibrates itself
     */
    public CalibratedOptions(LlamaModel model, Path directory, IntConsumer progress) {
        this.model = model;
        this.directory = directory;
        this.progress = progress;
    }

    /**
     * Returns options with a calibration, if they need one or there is one to use.
     *
     * @param options the options
     * @return the options, ready for a cache
     * @throws IOException if a calibration file can not be read
     * @throws MalformedModelException if the model's files can not be identified
     * @throws IllegalArgumentException if a calibration file does not fit, or one is needed and the
     *     model must not calibrate itself
     */
    public CacheOptions complete(CacheOptions options) throws IOException, MalformedModelException {
        options.requireFits(model.geometry());
        if (!options.usesCalibration()) {
            return options;
        }
        if (model.isRandom()) {
            // Nothing is learnt from random keys: sizes and speed are those of any calibration.
            return options.forSizes(model.geometry());
        }
        String fingerprint = ModelFingerprint.of(directory);
        CalibrationStore store =
                new CalibrationStore(
                        options.calibrationFile().orElse(null),
                        directory,
                        options.calibrationName(),
                        fingerprint);
        Optional<Calibration> found = store.load();
        if (found.isPresent()) {
            return options.withCalibration(found.get());
        }
        if (!options.needsCalibration()) {
            return options;
        }
        if (!options.selfCalibration()) {
            throw new IllegalArgumentException(
                    "kv_cache_dtype "
                            + options.dtype().name()
                            + " needs a calibration of the model, there is no file and"
                            + " kv_self_calibration is false. "
                            + CalibrationFile.remedy(options.calibrationName()));
        }
        Calibration calibration = calibrateSelf(options, fingerprint);
        store.keep(calibration);
        return options.withCalibration(calibration);
    }

    private Calibration calibrateSelf(CacheOptions options, String fingerprint) throws IOException {
        logger.info(
                "Calibrating kv_cache_dtype {} on a built-in text, since there is no calibration"
                        + " file; this takes seconds to a minute.",
                options.calibrationName());
        try (HuggingFaceTokenizer tokenizer = Tokenizers.load(directory)) {
            String text = CalibrationText.builtIn();
            List<CacheOptions> caches = List.of(options);
            List<int[]> windows = windows(text, tokenizer, SELF_TOKENS);
            Map<String, String> metadata = metadata(fingerprint, text, windows);
            return new Calibrator(model, windows).run(caches, metadata, progress).get(0);
        }
    }

    /**
     * Calibrates caches on a text in a forward pass.
     *
     * @param caches what to calibrate for
     * @param text the text
     * @param tokenizer the model's tokenizer, created without truncation
     * @param limit tokens to use, at most
     * @param progress told the number of layers that are done
     * @return a calibration for each, ready to be written
     * @throws IOException if the model's files can not be read
     * @throws MalformedModelException if the model's files can not be identified
     */
    public List<Calibration> calibrate(
            List<CacheOptions> caches,
            String text,
            HuggingFaceTokenizer tokenizer,
            int limit,
            IntConsumer progress)
            throws IOException, MalformedModelException {
        return calibrate(caches, text, tokenizer, limit, Sensitivity.QUERIES, progress);
    }

    /**
     * Calibrates caches on a text.
     *
     * @param caches what to calibrate for
     * @param text the text
     * @param tokenizer the model's tokenizer, created without truncation
     * @param limit tokens to use, at most
     * @param sensitivity how to find out what matters
     * @param progress told the number of layers that are done, see {@link Calibrator}
     * @return a calibration for each, ready to be written
     * @throws IOException if the model's files can not be read
     * @throws MalformedModelException if the model's files can not be identified
     * @throws IllegalArgumentException if the text is too short, or if gradients are wanted that
     *     none of the caches uses
     */
    public List<Calibration> calibrate(
            List<CacheOptions> caches,
            String text,
            HuggingFaceTokenizer tokenizer,
            int limit,
            Sensitivity sensitivity,
            IntConsumer progress)
            throws IOException, MalformedModelException {
        List<int[]> windows = windows(text, tokenizer, limit);
        Map<String, String> metadata = metadata(ModelFingerprint.of(directory), text, windows);
        return new Calibrator(model, windows).run(caches, sensitivity, metadata, progress);
    }

    private List<int[]> windows(String text, HuggingFaceTokenizer tokenizer, int limit) {
        int[] tokens =
                Arrays.stream(tokenizer.encode(text, false, false).getIds())
                        .mapToInt(Math::toIntExact)
                        .toArray();
        return Calibrator.windows(tokens, limit, model.geometry().maxTokens());
    }

    private static Map<String, String> metadata(
            String fingerprint, String text, List<int[]> windows) {
        Map<String, String> metadata = new TreeMap<>();
        metadata.put(CalibrationFile.MODEL, fingerprint);
        metadata.put(CalibrationFile.TEXT_SHA256, CalibrationText.sha256(text));
        metadata.put(
                CalibrationFile.TOKENS,
                Integer.toString(windows.stream().mapToInt(window -> window.length).sum()));
        return metadata;
    }
}
