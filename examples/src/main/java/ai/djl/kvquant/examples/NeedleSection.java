/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.evaluate.NeedlePrompts;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalDouble;

/** Pass keys found under each cache, by length and depth. */
final class NeedleSection implements AccuracySection {

    private static final String PLOT = "needle.png";

    private final EvalPart<EvalPart.NeedleRow> part;
    private final List<String> caches;

    /**
     * Prepares the section.
     *
     * @param order caches that come first, in this order
     */
    NeedleSection(EvalPart<EvalPart.NeedleRow> part, List<String> order) {
        this.part = part;
        caches = AccuracySection.ordered(order, part.rows(), EvalPart.NeedleRow::cache);
    }

    @Override
    public void plot(AccuracyPlots plots) throws IOException {
        plots.needle(PLOT, cells());
    }

    @Override
    public Table summary() {
        Table table = new Table("cache", "tokens", "pass keys found");
        for (int length : lengths()) {
            for (String cache : caches) {
                table.row(cache, length, score(cache, length, score(AUTO, length)));
            }
        }
        return table;
    }

    private List<Integer> lengths() {
        return part.rows().stream().map(EvalPart.NeedleRow::length).distinct().sorted().toList();
    }

    /** The share of keys found, 0 to 1, at a length; empty if it was not measured. */
    private OptionalDouble score(String cache, int length) {
        int hits = 0;
        int trials = 0;
        for (EvalPart.NeedleRow row : part.rows()) {
            if (cache.equals(row.cache()) && length == row.length()) {
                hits += row.hits();
                trials += row.trials();
            }
        }
        return trials == 0 ? OptionalDouble.empty() : OptionalDouble.of((double) hits / trials);
    }

    /** Prompts of a length, over all depths: the same for every cache. */
    private int trials(int length) {
        List<EvalPart.NeedleRow> rows =
                part.rows().stream().filter(row -> row.length() == length).toList();
        String any = rows.get(0).cache();
        return rows.stream()
                .filter(row -> any.equals(row.cache()))
                .mapToInt(EvalPart.NeedleRow::trials)
                .sum();
    }

    @Override
    public String markdown() {
        StringBuilder text = new StringBuilder("\n## Needle\n\n");
        text.append("A sentence tells a pass key of five digits somewhere in a long text (");
        text.append(part.settings().get("filler"));
        text.append(
                "), the prompt ends with \""
                        + NeedlePrompts.ENDING.strip()
                        + "\", and greedy decoding has to give the key, exactly. All but a prompt's last token are computed once, in full"
                        + " precision, and stored in every cache; the last token and the answer are"
                        + " decoded from each. The length counts prompt and answer. Keys found, and"
                        + " in brackets the share of what `auto` finds:\n\n");
        List<Integer> lengths = lengths();
        List<String> header = new ArrayList<>(List.of("cache"));
        lengths.forEach(n -> header.add(n + " tokens, " + trials(n) + " prompts"));
        MarkdownTable table = new MarkdownTable(header.toArray(String[]::new));
        for (String cache : caches) {
            List<String> row = new ArrayList<>(List.of(AccuracySection.cache(cache)));
            lengths.forEach(n -> row.add(score(cache, n, score(AUTO, n))));
            table.row(row.toArray());
        }
        text.append(table)
                .append(AccuracySection.image("Pass keys found by length and depth", PLOT));
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
    private Map<String, Map<String, Double>> cells() {
        Map<String, Map<String, Double>> cells = new LinkedHashMap<>();
        for (String cache : caches) {
            Map<String, Double> row = new LinkedHashMap<>();
            part.rows().stream()
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
}
