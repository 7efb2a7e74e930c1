/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.io.IOException;
import java.util.Comparator;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;

/** The perplexity of texts under each cache, in tables and plots. */
final class PerplexitySection implements AccuracySection {

    /** Caches of more bits are not drawn if there are any of fewer. */
    private static final double MOST_BITS = 10;

    private final EvalPart<EvalPart.PerplexityRow> part;

    PerplexitySection(EvalPart<EvalPart.PerplexityRow> part) {
        this.part = part;
    }

    @Override
    public String markdown() {
        StringBuilder text = new StringBuilder(explain());
        texts().forEach(name -> text.append(perplexity(name)));
        return text.toString();
    }

    @Override
    public void plot(AccuracyPlots plots) throws IOException {
        for (String name : texts()) {
            if (!losses(name).isEmpty()) {
                plots.loss(lossPlot(name), name, losses(name));
            }
        }
    }

    @Override
    public Table summary() {
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
        return table;
    }

    /** The caches, those of most bits first. */
    List<String> order() {
        return rows(texts().iterator().next()).stream().map(EvalPart.PerplexityRow::cache).toList();
    }

    private static String lossPlot(String text) {
        return "loss-" + text.replaceAll("[^A-Za-z0-9]+", "-") + ".png";
    }

    private String explain() {
        String context = part.settings().get("context");
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

    private Set<String> texts() {
        Set<String> names = new LinkedHashSet<>();
        part.rows().forEach(row -> names.add(row.text()));
        return names;
    }

    /** The rows of a text: most bits first, and among equals the smallest loss. */
    private List<EvalPart.PerplexityRow> rows(String text) {
        return part.rows().stream()
                .filter(row -> text.equals(row.text()))
                .sorted(
                        Comparator.comparingDouble((EvalPart.PerplexityRow row) -> -row.bits())
                                .thenComparingDouble(EvalPart.PerplexityRow::perplexity))
                .toList();
    }

    private double baseline(String text) {
        return rows(text).stream()
                .filter(row -> AccuracySection.AUTO.equals(row.cache()))
                .mapToDouble(EvalPart.PerplexityRow::perplexity)
                .findFirst()
                .orElse(Double.NaN);
    }

    private String perplexity(String name) {
        List<EvalPart.PerplexityRow> rows = rows(name);
        StringBuilder text = new StringBuilder("\n### " + name + "\n\n");
        int windows = rows.get(0).windows();
        text.append(windows).append(windows == 1 ? " window, " : " windows, ");
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
            boolean reference = AccuracySection.AUTO.equals(row.cache());
            table.row(
                    AccuracySection.cache(row.cache()),
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
            text.append(AccuracySection.image("Loss of perplexity against bits", lossPlot(name)));
        }
        return text.toString();
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
                        .filter(row -> !AccuracySection.AUTO.equals(row.cache()))
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
}
