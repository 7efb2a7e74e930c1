/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.OptionalDouble;
import java.util.Set;
import java.util.function.Function;
import java.util.stream.Stream;

/** The report of an evaluation: what its parts say, in Markdown with plots beside it. */
final class AccuracyReport {

    /** The report's file name. */
    static final String FILE = "accuracy.md";

    private static final String AUTO = "auto";
    private static final String NEEDLE_PLOT = "needle.png";

    /** Caches of more bits are not drawn if there are any of fewer. */
    private static final double MOST_BITS = 10;

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

    /** Writes the Markdown file and the plots that it shows. */
    void write() throws IOException {
        store.write(FILE, markdown());
        AccuracyPlots plots = new AccuracyPlots(store.directory());
        if (perplexity != null) {
            for (String name : texts()) {
                if (!losses(name).isEmpty()) {
                    plots.loss(lossPlot(name), name, losses(name));
                }
            }
        }
        if (needle != null) {
            plots.needle(NEEDLE_PLOT, needleCells());
        }
        if (layers != null) {
            for (Map.Entry<String, Map<String, List<Double>>> e : layerCurves().entrySet()) {
                plots.layers(layerPlot(e.getKey()), e.getKey(), e.getValue());
            }
        }
    }

    private String markdown() {
        StringBuilder text = new StringBuilder(head());
        if (perplexity != null) {
            text.append(explainPerplexity());
            texts().forEach(name -> text.append(perplexity(name)));
        }
        if (needle != null) {
            text.append(needle());
        }
        if (layers != null) {
            text.append(layers());
        }
        return text.toString();
    }

    private static String image(String title, String file) {
        return "\n![" + title + "](" + file + ")\n";
    }

    private static String layerPlot(String what) {
        return "error-" + what + ".png";
    }

    private static String lossPlot(String text) {
        return "loss-" + text.replaceAll("[^A-Za-z0-9]+", "-") + ".png";
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

    private Set<String> texts() {
        Set<String> names = new LinkedHashSet<>();
        perplexity.rows().forEach(row -> names.add(row.text()));
        return names;
    }

    /** The rows of a text: most bits first, and among equals the smallest loss. */
    private List<EvalPart.PerplexityRow> rows(String text) {
        return perplexity.rows().stream()
                .filter(row -> text.equals(row.text()))
                .sorted(
                        Comparator.comparingDouble((EvalPart.PerplexityRow row) -> -row.bits())
                                .thenComparingDouble(EvalPart.PerplexityRow::perplexity))
                .toList();
    }

    private double baseline(String text) {
        return rows(text).stream()
                .filter(row -> AUTO.equals(row.cache()))
                .mapToDouble(EvalPart.PerplexityRow::perplexity)
                .findFirst()
                .orElse(Double.NaN);
    }

    private String explainPerplexity() {
        String context = perplexity.settings().get("context");
        return "\n## Perplexity\n\nWindows of "
                + context
                + " tokens, spread evenly over a text, each evaluated alone; all tokens of a window"
                + " but the first are predicted. Streaming semantics: a token reads sinks and the"
                + " recent window exactly and every other token before it as the cache gives it back,"
                + " as in decoding token by token from the first token on; a cache without a window"
                + " reads even the token itself as stored.\n\n*Loss* is the perplexity less that of"
                + " `auto`: what is bad stands here like what is good. *KL* is the mean"
                + " Kullback-Leibler divergence of the predictions from those of `auto`, in nats;"
                + " *top-1* is how often the most probable token is the same. *Bits* count a stored"
                + " element with scales, zero-points, norms, outliers and bases; *in all* adds the"
                + " exact sinks (at most as many as there may be) and the recent window, at a length"
                + " of "
                + context
                + " tokens. The plots draw the mean of keys and values in all"
                + (isCut() ? ", up to " + Table.number(MOST_BITS, 0) + " bits" : "")
                + ".\n";
    }

    /** Whether plots leave out caches of many bits, beside which the others would be a dot. */
    private boolean isCut() {
        return texts().stream().anyMatch(name -> losses(name).size() < rows(name).size() - 1);
    }

    private String perplexity(String name) {
        List<EvalPart.PerplexityRow> rows = rows(name);
        StringBuilder text = new StringBuilder("\n### " + name + "\n\n");
        text.append(rows.get(0).windows()).append(" windows, ");
        text.append(rows.get(0).tokens()).append(" predicted tokens.\n\n");
        MarkdownTable table =
                new MarkdownTable(
                        "cache",
                        "bits K / V",
                        "in all",
                        "perplexity",
                        "loss",
                        "mean KL",
                        "top-1",
                        "calibrated on");
        double baseline = baseline(name);
        for (EvalPart.PerplexityRow row : rows) {
            boolean reference = AUTO.equals(row.cache());
            table.row(
                    cache(row.cache()),
                    bits(row.bitsPerKey(), row.bitsPerValue()),
                    bits(row.storedBitsPerKey(), row.storedBitsPerValue()),
                    Table.number(row.perplexity(), 4),
                    reference ? "" : signed(row.perplexity() - baseline),
                    reference ? "" : Table.number(row.meanKl(), 5),
                    reference ? "" : Table.number(100 * row.top1Agreement(), 2) + " %",
                    row.calibration() == null ? "" : row.calibration());
        }
        text.append(table);
        if (!losses(name).isEmpty()) {
            text.append(image("Loss of perplexity against bits", lossPlot(name)));
        }
        return text.toString();
    }

    /** A label as code, its options behind it. */
    private static String cache(String label) {
        String[] parts = label.split(":", 2);
        String name = "`" + parts[0] + "`";
        return parts.length == 1 ? name : name + " " + parts[1].replace(':', ' ');
    }

    private static String bits(double key, double value) {
        return Table.number(key, 2) + " / " + Table.number(value, 2);
    }

    private static String signed(double loss) {
        return (loss < 0 ? "" : "+") + Table.number(loss, Math.abs(loss) < 0.1 ? 4 : 3);
    }

    /** What is drawn. */
    private List<AccuracyPlots.Loss> losses(String text) {
        double baseline = baseline(text);
        List<AccuracyPlots.Loss> all =
                rows(text).stream()
                        .filter(row -> !AUTO.equals(row.cache()))
                        .map(
                                row ->
                                        new AccuracyPlots.Loss(
                                                row.cache(),
                                                row.bits(),
                                                row.perplexity() - baseline))
                        .toList();
        List<AccuracyPlots.Loss> few = all.stream().filter(l -> l.bits() <= MOST_BITS).toList();
        return few.isEmpty() ? all : few;
    }

    /** The caches of a part: those of the first perplexity table in its order, then others. */
    private <R> List<String> caches(EvalPart<R> part, Function<R, String> cache) {
        Set<String> measured = new LinkedHashSet<>();
        part.rows().forEach(row -> measured.add(cache.apply(row)));
        Set<String> ordered = new LinkedHashSet<>();
        if (perplexity != null) {
            rows(perplexity.rows().get(0).text()).forEach(row -> ordered.add(row.cache()));
        }
        ordered.retainAll(measured);
        ordered.addAll(measured);
        return List.copyOf(ordered);
    }

    private List<Integer> lengths() {
        return needle.rows().stream().map(EvalPart.NeedleRow::length).distinct().sorted().toList();
    }

    /** The share of keys found, 0 to 1, at a length; empty if it was not measured. */
    private OptionalDouble score(String cache, int length) {
        int hits = 0;
        int trials = 0;
        for (EvalPart.NeedleRow row : needle.rows()) {
            if (cache.equals(row.cache()) && length == row.length()) {
                hits += row.hits();
                trials += row.trials();
            }
        }
        return trials == 0 ? OptionalDouble.empty() : OptionalDouble.of((double) hits / trials);
    }

    private int trials(int length) {
        String any = needle.rows().get(0).cache();
        return needle.rows().stream()
                .filter(row -> row.length() == length && any.equals(row.cache()))
                .mapToInt(EvalPart.NeedleRow::trials)
                .sum();
    }

    private String needle() {
        StringBuilder text = new StringBuilder("\n## Needle\n\n");
        text.append("A sentence tells a pass key of five digits somewhere in a long text (");
        text.append(needle.settings().get("filler"));
        text.append(
                "), a question after it ends the prompt, and greedy decoding has to give the key,"
                        + " exactly. All but a prompt's last token are computed once, in full"
                        + " precision, and stored in every cache; the last token and the answer are"
                        + " decoded from each. The length counts prompt and answer. Keys found, and"
                        + " in brackets the share of what `auto` finds:\n\n");
        List<Integer> lengths = lengths();
        List<String> header = new ArrayList<>(List.of("cache"));
        lengths.forEach(n -> header.add(n + " tokens, " + trials(n) + " prompts"));
        MarkdownTable table = new MarkdownTable(header.toArray(String[]::new));
        for (String cache : caches(needle, EvalPart.NeedleRow::cache)) {
            List<String> row = new ArrayList<>(List.of(cache(cache)));
            lengths.forEach(n -> row.add(score(cache, n, score(AUTO, n))));
            table.row(row.toArray());
        }
        text.append(table).append(image("Pass keys found by length and depth", NEEDLE_PLOT));
        return text.toString();
    }

    private String score(String cache, int length, OptionalDouble reference) {
        OptionalDouble score = score(cache, length);
        if (score.isEmpty()) {
            return "";
        }
        String text = Table.number(100 * score.getAsDouble(), 0) + " %";
        boolean compare = !AUTO.equals(cache) && reference.orElse(0) > 0;
        double share = compare ? score.getAsDouble() / reference.getAsDouble() : 0;
        return compare ? text + " (" + Table.number(100 * share, 0) + " %)" : text;
    }

    /** For each cache the share of keys found, by length and depth. */
    private Map<String, Map<String, Double>> needleCells() {
        Map<String, Map<String, Double>> cells = new LinkedHashMap<>();
        for (String cache : caches(needle, EvalPart.NeedleRow::cache)) {
            Map<String, Double> row = new LinkedHashMap<>();
            needle.rows().stream()
                    .filter(r -> cache.equals(r.cache()))
                    .sorted(
                            Comparator.comparingInt(EvalPart.NeedleRow::length)
                                    .thenComparingDouble(EvalPart.NeedleRow::depth))
                    .forEach(r -> row.put(column(r), (double) r.hits() / r.trials()));
            cells.put(cache, row);
        }
        return cells;
    }

    private static String column(EvalPart.NeedleRow row) {
        return row.length() + ", " + Math.round(100 * row.depth()) + " %";
    }

    /** For keys, values and attention the curve of each cache, if any cache has an error. */
    private Map<String, Map<String, List<Double>>> layerCurves() {
        Map<String, Map<String, List<Double>>> sides = new LinkedHashMap<>();
        sides.put("keys", byCache(EvalPart.LayerRow::keys));
        sides.put("values", byCache(EvalPart.LayerRow::values));
        sides.put("attention", byCache(EvalPart.LayerRow::attention));
        sides.values().removeIf(Map::isEmpty);
        return sides;
    }

    private Map<String, List<Double>> byCache(Function<EvalPart.LayerRow, List<Double>> side) {
        Map<String, List<Double>> curves = new LinkedHashMap<>();
        for (String cache : caches(layers, EvalPart.LayerRow::cache)) {
            layers.rows().stream()
                    .filter(row -> cache.equals(row.cache()))
                    .filter(row -> side.apply(row).stream().anyMatch(Objects::nonNull))
                    .forEach(row -> curves.put(cache, side.apply(row)));
        }
        return curves;
    }

    private String layers() {
        StringBuilder text = new StringBuilder("\n## Error by layer\n\n");
        text.append("One window of ").append(layers.settings().get("tokens")).append(" tokens of ");
        text.append(layers.settings().get("text"));
        text.append(
                ". Each layer is given its exact input, so that errors do not add up; keys (after"
                        + " RoPE) and values are compared as the cache gives them back, sinks exactly"
                        + " and nothing of the recent window, the output of attention with streaming"
                        + " semantics. Signal-to-noise ratios in dB, the mean over layers and in"
                        + " brackets the worst layer: 20 dB is an error of a tenth, 6 dB more are half"
                        + " the error.\n\n");
        MarkdownTable table = new MarkdownTable("cache", "keys", "values", "attention");
        for (String cache : caches(layers, EvalPart.LayerRow::cache)) {
            layers.rows().stream()
                    .filter(row -> cache.equals(row.cache()))
                    .forEach(
                            row ->
                                    table.row(
                                            cache(cache),
                                            ratio(row.keys()),
                                            ratio(row.values()),
                                            ratio(row.attention())));
        }
        text.append(table);
        layerCurves()
                .forEach(
                        (what, curves) ->
                                text.append(image("Error by layer, " + what, layerPlot(what))));
        return text.toString();
    }

    /** Mean and worst; layers without an error count in neither. */
    private static String ratio(List<Double> byLayer) {
        List<Double> known = byLayer.stream().filter(Objects::nonNull).toList();
        if (known.isEmpty()) {
            return "exact";
        }
        double mean = known.stream().mapToDouble(x -> x).average().orElseThrow();
        double worst = known.stream().mapToDouble(x -> x).min().orElseThrow();
        return Table.number(mean, 1) + " (" + Table.number(worst, 1) + ")";
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

    /** A row for each text and cache, then one for each length of prompts and cache. */
    List<Table> summary() {
        List<Table> tables = new ArrayList<>();
        if (perplexity != null) {
            Table table = new Table("cache", "text", "bits", "loss", "mean KL");
            for (String name : texts()) {
                double baseline = baseline(name);
                for (EvalPart.PerplexityRow row : rows(name)) {
                    table.row(
                            row.cache(),
                            name,
                            Table.number(row.bits(), 2),
                            signed(row.perplexity() - baseline),
                            Table.number(row.meanKl(), 5));
                }
            }
            tables.add(table);
        }
        if (needle != null) {
            Table table = new Table("cache", "tokens", "pass keys found");
            for (int length : lengths()) {
                for (String cache : caches(needle, EvalPart.NeedleRow::cache)) {
                    table.row(cache, length, score(cache, length, score(AUTO, length)));
                }
            }
            tables.add(table);
        }
        return tables;
    }
}
