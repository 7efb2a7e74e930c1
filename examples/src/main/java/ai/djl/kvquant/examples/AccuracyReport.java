/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.stream.Stream;

/** The report of an evaluation: what its parts say, in Markdown with plots beside it. */
final class AccuracyReport {

    /** The report's file name. */
    static final String FILE = "accuracy.md";

    private final EvalStore store;
    private final List<String> notes;
    private final EvalPart<EvalPart.PerplexityRow> perplexity;
    private final EvalPart<EvalPart.LayerRow> layers;
    private final EvalPart<EvalPart.NeedleRow> needle;

    private AccuracyReport(EvalStore store, List<String> notes) throws IOException {
        this.store = store;
        this.notes = notes;
        perplexity = store.read(EvalPart.PERPLEXITY, EvalPart.PerplexityRow.class);
        layers = store.read(EvalPart.LAYERS, EvalPart.LayerRow.class);
        needle = store.read(EvalPart.NEEDLE, EvalPart.NeedleRow.class);
    }

    /**
     * Reads what was measured.
     *
     * @param notes sentences for the report's head, besides those that were saved
     * @throws IllegalArgumentException if nothing was measured, or parts are of several models
     */
    static AccuracyReport read(EvalStore store, List<String> notes) throws IOException {
        AccuracyReport report = new AccuracyReport(store, notes);
        List<EvalPart<?>> parts = report.parts();
        if (parts.isEmpty()) {
            throw new IllegalArgumentException(
                    "--output "
                            + store.directory()
                            + " holds no results; measure something first.");
        }
        if (parts.stream().map(p -> p.fingerprint() + p.weights()).distinct().count() > 1) {
            throw new IllegalArgumentException(
                    "--output "
                            + store.directory()
                            + " holds results of several models or weight types; keep one"
                            + " directory for each.");
        }
        return report;
    }

    private List<EvalPart<?>> parts() {
        List<EvalPart<?>> parts = new ArrayList<>();
        Stream.of(perplexity, layers, needle).filter(Objects::nonNull).forEach(parts::add);
        return parts;
    }

    private List<AccuracySection> sections() {
        List<AccuracySection> sections = new ArrayList<>();
        List<String> order = List.of();
        if (perplexity != null) {
            PerplexitySection section = new PerplexitySection(perplexity);
            order = section.order();
            sections.add(section);
        }
        if (needle != null) {
            sections.add(new NeedleSection(needle, order));
        }
        if (layers != null) {
            sections.add(new LayerSection(layers, order));
        }
        return sections;
    }

    /** Writes the Markdown file and the plots that it shows. */
    void write() throws IOException {
        StringBuilder text = new StringBuilder(head());
        sections().forEach(section -> text.append(section.markdown()));
        store.write(FILE, text.toString());
        AccuracyPlots plots = new AccuracyPlots(store.directory());
        for (AccuracySection section : sections()) {
            section.plot(plots);
        }
    }

    private String head() {
        EvalPart<?> any = parts().get(0);
        StringBuilder text = new StringBuilder("# Accuracy\n\n");
        text.append("What KV caches cost on ").append(any.model());
        text.append(", weights in `").append(any.weights()).append("`. ");
        Set<String> sentences = new LinkedHashSet<>(notes);
        parts().forEach(part -> sentences.addAll(part.notes()));
        sentences.forEach(sentence -> text.append(sentence.strip()).append(' '));
        text.append(
                "This file is written by `kvq eval`, tables and plots, and not edited; the figures"
                        + " lie beside it as JSON.\n\n");
        Set<EvalPart.Run> runs = new LinkedHashSet<>();
        parts().forEach(part -> runs.addAll(part.runs()));
        runs.forEach(
                run ->
                        text.append("    # ")
                                .append(run.date())
                                .append('\n')
                                .append("    ")
                                .append(run.command())
                                .append('\n'));
        text.append(
                "\nCaches are named by their `kv_cache_dtype`; options that differ from the defaults"
                        + " stand behind it. `auto` is the cache without quantization, and what"
                        + " all others are compared with.\n");
        return text.toString();
    }

    /** Every row, as an object of one line. */
    List<String> jsonLines() {
        List<String> lines = new ArrayList<>();
        addLines(lines, EvalPart.PERPLEXITY, perplexity);
        addLines(lines, EvalPart.LAYERS, layers);
        addLines(lines, EvalPart.NEEDLE, needle);
        return lines;
    }

    private static void addLines(List<String> lines, String name, EvalPart<?> part) {
        if (part != null) {
            part.rows().forEach(row -> lines.add(EvalStore.line(name, row)));
        }
    }

    /** What was measured, in short. */
    List<Table> summary() {
        return sections().stream().map(AccuracySection::summary).toList();
    }
}
