/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Predicate;

/**
 * One part of an evaluation as it is saved: what was measured on which model, how, and by which
 * commands.
 *
 * @param model the model's name
 * @param fingerprint of the model's files
 * @param weights the type in which weights are kept
 * @param notes sentences about the model
 * @param settings what all rows have in common
 * @param runs the commands that measured
 * @param rows what was measured
 */
record EvalPart<R>(
        String model,
        String fingerprint,
        String weights,
        List<String> notes,
        Map<String, String> settings,
        List<Run> runs,
        List<R> rows) {

    /** The name of the perplexity of texts. */
    static final String PERPLEXITY = "perplexity";

    /** The name of the error of layers. */
    static final String LAYERS = "layers";

    /** The name of passkey retrieval. */
    static final String NEEDLE = "needle";

    /**
     * A command.
     *
     * @param date its day, as 2026-01-31
     * @param command what was typed, without directories
     */
    record Run(String date, String command) {}

    /**
     * A text under a cache.
     *
     * @param text the text's file name
     * @param cache the cache's label
     * @param calibration what the cache was calibrated on; null without calibration
     * @param storedBitsPerKey with sinks and recent window, at the length of a window
     */
    record PerplexityRow(
            String text,
            String cache,
            String calibration,
            double perplexity,
            int windows,
            long tokens,
            double bitsPerKey,
            double bitsPerValue,
            double storedBitsPerKey,
            double storedBitsPerValue,
            double meanKl,
            double top1Agreement) {

        double bits() {
            return (storedBitsPerKey + storedBitsPerValue) / 2;
        }
    }

    /** Signal-to-noise ratios by layer, in dB; null where there is no error. */
    record LayerRow(String cache, List<Double> keys, List<Double> values, List<Double> attention) {}

    /** Pass keys found under a cache, of one length and depth (0 to 1). */
    record NeedleRow(String cache, int length, double depth, int trials, int hits) {}

    /** A part of this model, without rows. */
    static <R> EvalPart<R> begin(EvalHeading heading, Map<String, String> settings) {
        return new EvalPart<>(
                heading.model(),
                heading.fingerprint(),
                heading.weights(),
                new ArrayList<>(),
                new TreeMap<>(settings),
                new ArrayList<>(),
                new ArrayList<>());
    }

    /** This part, to be continued by a run with these settings. */
    EvalPart<R> requireLike(EvalPart<R> begun, String name) {
        if (!begun.fingerprint.equals(fingerprint)
                || !begun.weights.equals(weights)
                || !begun.settings.equals(settings)) {
            throw new IllegalArgumentException(
                    "The results in "
                            + name
                            + " are of "
                            + describe()
                            + ", but this run is of "
                            + begun.describe()
                            + ". Give the same model and options, or another --output.");
        }
        return this;
    }

    private String describe() {
        String hash = fingerprint.substring(0, Math.min(8, fingerprint.length()));
        return model + " (" + hash + ", " + weights + ", " + new TreeMap<>(settings) + ")";
    }

    void add(EvalHeading heading, List<R> more) {
        if (!runs.contains(heading.run())) {
            runs.add(heading.run());
        }
        heading.notes().stream().filter(note -> !notes.contains(note)).forEach(notes::add);
        rows.addAll(more);
    }

    boolean has(Predicate<R> row) {
        return rows.stream().anyMatch(row);
    }
}
