/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.MalformedModelException;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.calibrate.CalibrationFile;
import ai.djl.kvquant.calibrate.CalibrationText;
import ai.djl.kvquant.evaluate.LayerErrorResult;
import ai.djl.kvquant.evaluate.LayerErrors;
import ai.djl.kvquant.evaluate.Needle;
import ai.djl.kvquant.evaluate.NeedlePrompt;
import ai.djl.kvquant.evaluate.NeedlePrompts;
import ai.djl.kvquant.evaluate.NeedleResult;
import ai.djl.kvquant.evaluate.Perplexity;
import ai.djl.kvquant.evaluate.PerplexityResult;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;

/**
 * Measures the parts of an evaluation that its directory does not hold yet, and saves them as they
 * come: after each text, and after each length of prompts.
 */
final class EvalMeasurer {

    private static final String AUTO = "auto";
    private static final int HASH_DIGITS = 8;

    private final Session session;
    private final EvalStore store;
    private final EvalHeading heading;
    private final List<CacheArguments.Named> caches;
    private final int jobs;
    private final Map<String, CacheOptions> completed = new HashMap<>();

    /**
     * Prepares to measure.
     *
     * @param caches what to compare; {@code auto} is measured as well, as their reference
     * @param jobs how many windows or prompts are computed at a time
     */
    EvalMeasurer(
            Session session,
            EvalStore store,
            EvalHeading heading,
            List<CacheArguments.Named> caches,
            int jobs) {
        this.jobs = jobs;
        this.session = session;
        this.store = store;
        this.heading = heading;
        this.caches = new ArrayList<>(caches);
        if (caches.stream().noneMatch(cache -> AUTO.equals(cache.label()))) {
            this.caches.add(0, new CacheArguments.Named(AUTO, CacheOptions.of(AUTO)));
        }
    }

    private <R> EvalPart<R> part(String name, Class<R> row, Map<String, String> settings)
            throws IOException {
        EvalPart<R> begun = EvalPart.begin(heading, settings);
        EvalPart<R> found = store.read(name, row);
        String file = store.directory().resolve(name + ".json").toString();
        return found == null ? begun : found.requireLike(begun, file);
    }

    /** Options with a calibration: that may have to be made first, which takes a while. */
    private List<CacheOptions> complete(List<CacheArguments.Named> chosen)
            throws IOException, MalformedModelException {
        List<CacheOptions> options = new ArrayList<>();
        for (CacheArguments.Named each : chosen) {
            if (!completed.containsKey(each.label())) {
                completed.put(each.label(), session.complete(each.options()));
            }
            options.add(completed.get(each.label()));
        }
        return options;
    }

    private static String calibration(CacheOptions options) {
        Map<String, String> metadata = options.calibrationMetadata();
        if (metadata.isEmpty()) {
            return null;
        }
        String hash = metadata.getOrDefault(CalibrationFile.TEXT_SHA256, "");
        boolean self = hash.equals(CalibrationText.sha256(CalibrationText.builtIn()));
        return metadata.get(CalibrationFile.TOKENS)
                + " tokens of "
                + (self
                        ? "the built-in text"
                        : "text " + hash.substring(0, Math.min(HASH_DIGITS, hash.length())));
    }

    /** Perplexity of texts; as many windows as there are if a text has fewer. */
    void perplexity(List<Path> texts, int context, int windows)
            throws IOException, MalformedModelException {
        EvalPart<EvalPart.PerplexityRow> part =
                part(
                        EvalPart.PERPLEXITY,
                        EvalPart.PerplexityRow.class,
                        Map.of("context", "" + context, "windows", "" + windows));
        for (Path text : texts) {
            String name = text.getFileName().toString();
            List<CacheArguments.Named> missing =
                    caches.stream()
                            .filter(
                                    c ->
                                            !part.has(
                                                    r ->
                                                            name.equals(r.text())
                                                                    && c.label().equals(r.cache())))
                            .toList();
            if (!missing.isEmpty()) {
                int[] tokens = Perplexity.tokenize(session.tokenizer(), Texts.read(text, "--text"));
                int count = Math.min(windows, Math.max(1, tokens.length / context));
                List<int[]> chosen = Perplexity.windows(tokens, context, count);
                part.add(heading, perplexity(name, missing, chosen, context));
                store.write(EvalPart.PERPLEXITY, part);
            }
        }
    }

    private List<EvalPart.PerplexityRow> perplexity(
            String text, List<CacheArguments.Named> missing, List<int[]> windows, int context)
            throws IOException, MalformedModelException {
        List<CacheOptions> options = complete(missing);
        List<PerplexityResult> results;
        int threads = Math.min(jobs, windows.size());
        try (Jobs<Perplexity> each =
                        Jobs.of(threads, () -> new Perplexity(session.model(), options, context));
                Progress progress = Progress.of("Perplexity of " + text, windows.size())) {
            each.run(windows, Perplexity::add, progress::step);
            results = each.merge(Perplexity::addAll).results();
        }
        List<EvalPart.PerplexityRow> rows = new ArrayList<>();
        for (int i = 0; i < results.size(); ++i) {
            PerplexityResult r = results.get(i);
            rows.add(
                    new EvalPart.PerplexityRow(
                            text,
                            missing.get(i).label(),
                            calibration(options.get(i)),
                            r.perplexity(),
                            r.windows(),
                            r.tokens(),
                            r.bitsPerKey(),
                            r.bitsPerValue(),
                            r.storedBitsPerKey(),
                            r.storedBitsPerValue(),
                            r.meanKl(),
                            r.top1Agreement()));
        }
        return rows;
    }

    /** Errors of layers on the first window of a text. */
    void layers(Path text, int context) throws IOException, MalformedModelException {
        String name = text.getFileName().toString();
        EvalPart<EvalPart.LayerRow> part =
                part(
                        EvalPart.LAYERS,
                        EvalPart.LayerRow.class,
                        Map.of("text", name, "tokens", "" + context));
        List<CacheArguments.Named> missing =
                caches.stream()
                        .filter(c -> !AUTO.equals(c.label()))
                        .filter(c -> !part.has(r -> c.label().equals(r.cache())))
                        .toList();
        if (missing.isEmpty()) {
            return;
        }
        int[] tokens = Perplexity.tokenize(session.tokenizer(), Texts.read(text, "--text"));
        int[] window = Perplexity.windows(tokens, context, 1).get(0);
        int layers = session.model().geometry().numLayers();
        try (LayerErrors errors = new LayerErrors(session.model(), complete(missing), context);
                Progress progress = Progress.of("Error by layer", layers)) {
            errors.add(window, layer -> progress.step());
            List<EvalPart.LayerRow> rows = new ArrayList<>();
            for (int i = 0; i < missing.size(); ++i) {
                LayerErrorResult r = errors.results().get(i);
                rows.add(
                        new EvalPart.LayerRow(
                                missing.get(i).label(),
                                finite(r.keys()),
                                finite(r.values()),
                                finite(r.attention())));
            }
            part.add(heading, rows);
        }
        store.write(EvalPart.LAYERS, part);
    }

    /** JSON has no infinity: null where there is no error. */
    private static List<Double> finite(List<Double> ratios) {
        return ratios.stream()
                .map(ratio -> Double.isInfinite(ratio) ? null : ratio)
                .collect(Collectors.toCollection(ArrayList::new));
    }

    /**
     * What prompts to make.
     *
     * @param text the name of the filler; null: the built-in sentences
     * @param filler its text
     * @param lengths in tokens
     * @param depths from 0 to 1
     * @param trials prompts of each length and depth
     */
    record NeedlePlan(
            String text, String filler, int[] lengths, double[] depths, int trials, long seed) {

        Map<String, String> settings() {
            return Map.of(
                    "filler",
                    text == null ? "built-in sentences" : text,
                    "depths",
                    Arrays.toString(depths),
                    "trials",
                    "" + trials,
                    "seed",
                    "" + seed);
        }
    }

    /** Passkey retrieval. */
    void needle(NeedlePlan plan) throws IOException, MalformedModelException {
        EvalPart<EvalPart.NeedleRow> part =
                part(EvalPart.NEEDLE, EvalPart.NeedleRow.class, plan.settings());
        NeedlePrompts prompts = new NeedlePrompts(session.tokenizer(), plan.filler(), plan.seed());
        for (int length : plan.lengths()) {
            List<CacheArguments.Named> missing =
                    caches.stream()
                            .filter(
                                    c ->
                                            !part.has(
                                                    r ->
                                                            r.length() == length
                                                                    && c.label().equals(r.cache())))
                            .toList();
            if (!missing.isEmpty()) {
                part.add(heading, needle(plan, prompts, length, missing));
                store.write(EvalPart.NEEDLE, part);
            }
        }
    }

    private List<EvalPart.NeedleRow> needle(
            NeedlePlan plan, NeedlePrompts prompts, int length, List<CacheArguments.Named> missing)
            throws IOException, MalformedModelException {
        List<CacheOptions> options = complete(missing);
        List<NeedlePrompt> asked = new ArrayList<>();
        for (double depth : plan.depths()) {
            for (int trial = 0; trial < plan.trials(); ++trial) {
                asked.add(prompts.create(length, depth, trial));
            }
        }
        HuggingFaceTokenizer tokenizer = session.tokenizer();
        try (Jobs<Needle> each =
                        Jobs.of(
                                Math.min(jobs, asked.size()),
                                () -> new Needle(session.model(), tokenizer, options, length));
                Progress progress = Progress.of("Needle at " + length, asked.size())) {
            each.run(asked, Needle::add, progress::step);
            List<NeedleResult> results = each.merge(Needle::addAll).results();
            List<EvalPart.NeedleRow> rows = new ArrayList<>();
            for (int i = 0; i < results.size(); ++i) {
                NeedleResult r = results.get(i);
                rows.add(
                        new EvalPart.NeedleRow(
                                missing.get(i % missing.size()).label(),
                                r.length(),
                                r.depth(),
                                r.trials(),
                                r.hits()));
            }
            return rows;
        }
    }
}
