/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.function.Function;

/** The error of each layer under each cache. */
final class LayerSection implements AccuracySection {

    private final EvalPart<EvalPart.LayerRow> part;
    private final List<String> caches;

    /**
     * Prepares the section.
     *
     * @param order caches that come first, in this order
     */
    LayerSection(EvalPart<EvalPart.LayerRow> part, List<String> order) {
        this.part = part;
        caches = AccuracySection.ordered(order, part.rows(), EvalPart.LayerRow::cache);
    }

    @Override
    public void plot(AccuracyPlots plots) throws IOException {
        for (Map.Entry<String, Map<String, List<Double>>> e : curves().entrySet()) {
            plots.layers(layerPlot(e.getKey()), e.getKey(), e.getValue());
        }
    }

    @Override
    public Table summary() {
        Table table = new Table("cache", "keys dB", "values dB", "attention dB");
        for (EvalPart.LayerRow row : part.rows()) {
            table.row(row.cache(), ratio(row.keys()), ratio(row.values()), ratio(row.attention()));
        }
        return table;
    }

    private static String layerPlot(String what) {
        return "error-" + what + ".png";
    }

    /** For keys, values and attention the curve of each cache, if any cache has an error. */
    private Map<String, Map<String, List<Double>>> curves() {
        Map<String, Map<String, List<Double>>> sides = new LinkedHashMap<>();
        sides.put("keys", byCache(EvalPart.LayerRow::keys));
        sides.put("values", byCache(EvalPart.LayerRow::values));
        sides.put("attention", byCache(EvalPart.LayerRow::attention));
        sides.values().removeIf(Map::isEmpty);
        return sides;
    }

    private Map<String, List<Double>> byCache(Function<EvalPart.LayerRow, List<Double>> side) {
        Map<String, List<Double>> curves = new LinkedHashMap<>();
        for (String cache : caches) {
            part.rows().stream()
                    .filter(row -> cache.equals(row.cache()))
                    .filter(row -> side.apply(row).stream().anyMatch(Objects::nonNull))
                    .forEach(row -> curves.put(cache, side.apply(row)));
        }
        return curves;
    }

    @Override
    public String markdown() {
        StringBuilder text = new StringBuilder("\n## Error by layer\n\n");
        text.append("One window of ").append(part.settings().get("tokens")).append(" tokens of ");
        text.append(part.settings().get("text"));
        text.append(
                ". Each layer is given its exact input, so that errors do not add up; keys (after"
                        + " RoPE) and values are compared as the cache gives them back, sinks exactly"
                        + " and nothing of the recent window, the output of attention with streaming"
                        + " semantics. Signal-to-noise ratios in dB, the mean over layers and in"
                        + " brackets the worst layer: 20 dB is an error of a tenth, 6 dB more are half"
                        + " the error.\n\n");
        MarkdownTable table = new MarkdownTable("cache", "keys", "values", "attention");
        for (String cache : caches) {
            part.rows().stream()
                    .filter(row -> cache.equals(row.cache()))
                    .forEach(
                            row ->
                                    table.row(
                                            AccuracySection.cache(cache),
                                            ratio(row.keys()),
                                            ratio(row.values()),
                                            ratio(row.attention())));
        }
        text.append(table);
        curves().forEach(
                        (what, curves) ->
                                text.append(
                                        AccuracySection.image(
                                                "Error by layer, " + what, layerPlot(what))));
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
}
