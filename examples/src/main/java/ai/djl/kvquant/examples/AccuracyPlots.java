/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.awt.BasicStroke;
import java.awt.Color;
import java.awt.Font;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.DoubleSummaryStatistics;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.knowm.xchart.AnnotationText;
import org.knowm.xchart.BitmapEncoder;
import org.knowm.xchart.HeatMapChart;
import org.knowm.xchart.HeatMapChartBuilder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;
import org.knowm.xchart.XYSeries;
import org.knowm.xchart.internal.chartpart.Chart;
import org.knowm.xchart.style.Styler;
import org.knowm.xchart.style.markers.Marker;
import org.knowm.xchart.style.markers.SeriesMarkers;

/** The plots of a report, as PNG files; drawn without a display. */
final class AccuracyPlots {

    private static final int WIDTH = 1000;
    private static final int HEIGHT = 640;
    private static final int ROW_HEIGHT = 26;
    private static final int COLUMN_WIDTH = 60;

    /** The least that a logarithmic axis shows: a loss below is noise of rounding. */
    private static final double LEAST_LOSS = 0.001;

    /** Colours that differ for eyes that see few. */
    private static final Color[] COLORS = {
        new Color(0x0072b2), new Color(0xd55e00), new Color(0x009e73), new Color(0xcc79a7),
        new Color(0x56b4e9), new Color(0xe69f00), new Color(0x000000), new Color(0x999933),
    };

    private static final Marker[] MARKERS = {
        SeriesMarkers.CIRCLE, SeriesMarkers.SQUARE, SeriesMarkers.DIAMOND
    };

    private final Path directory;

    AccuracyPlots(Path directory) {
        System.setProperty("java.awt.headless", "true");
        this.directory = directory;
    }

    /** What a cache costs, and how many bits an element takes. */
    record Loss(String cache, double bits, double loss) {

        double shown() {
            return Math.max(LEAST_LOSS, loss);
        }

        /** Caches of one method with the same options: int4 and int2. */
        String family() {
            String[] parts = cache.split("(?=:)", 2);
            String method = parts[0].replaceAll("(?<![0-9.]|fp)[0-9.]+(?=/|$)", "");
            return shortened(parts.length == 1 ? method : method + parts[1]);
        }
    }

    /** A label without what all options have in common. */
    private static String shortened(String label) {
        return label.replace(":kv_", ", ");
    }

    /** Loss of perplexity against bits. */
    void loss(String file, String text, List<Loss> losses) throws IOException {
        XYChart chart =
                new XYChartBuilder()
                        .width(WIDTH)
                        .height(HEIGHT)
                        .title("Loss of perplexity, " + text)
                        .xAxisTitle("bits per element, sinks and window included")
                        .yAxisTitle("loss (log scale)")
                        .build();
        plain(chart.getStyler());
        chart.getStyler().setYAxisLogarithmic(true);
        chart.getStyler().setAnnotationTextFont(new Font(Font.SANS_SERIF, Font.PLAIN, 11));
        DoubleSummaryStatistics range =
                losses.stream().mapToDouble(loss -> Math.log10(loss.shown())).summaryStatistics();
        chart.getStyler().setYAxisMin(Math.pow(10, Math.floor(range.getMin())));
        chart.getStyler().setYAxisMax(Math.pow(10, Math.floor(range.getMax()) + 1));
        DoubleSummaryStatistics bitRange =
                losses.stream().mapToDouble(Loss::bits).summaryStatistics();
        chart.getStyler().setXAxisMin(Math.ceil(bitRange.getMin()) - 1);
        chart.getStyler().setXAxisMax(Math.floor(bitRange.getMax()) + 1);
        Map<String, List<Loss>> families = new LinkedHashMap<>();
        for (Loss loss : losses) {
            families.computeIfAbsent(loss.family(), f -> new ArrayList<>()).add(loss);
        }
        families.forEach(
                (family, members) -> {
                    List<Loss> sorted = new ArrayList<>(members);
                    sorted.sort(Comparator.comparingDouble(Loss::bits));
                    List<Double> bits = sorted.stream().map(Loss::bits).toList();
                    List<Double> shown = sorted.stream().map(Loss::shown).toList();
                    XYSeries series = chart.addSeries(family, bits, shown);
                    // Colours come again after eight families, with another mark.
                    int round = (chart.getSeriesMap().size() - 1) / COLORS.length;
                    series.setMarker(MARKERS[Math.min(round, MARKERS.length - 1)]);
                    series.setLineStyle(new BasicStroke(1f));
                    for (int i = 0; i < sorted.size(); ++i) {
                        String name = sorted.get(i).cache().replaceAll(":.*", "");
                        double above = shown.get(i) * 1.15;
                        chart.addAnnotation(new AnnotationText(name, bits.get(i), above, false));
                    }
                });
        save(chart, file);
    }

    /** Ratios by layer; layers without an error have no point. */
    void layers(String file, String what, Map<String, List<Double>> curves) throws IOException {
        XYChart chart =
                new XYChartBuilder()
                        .width(WIDTH)
                        .height(HEIGHT)
                        .title("Error by layer: " + what)
                        .xAxisTitle("layer")
                        .yAxisTitle("signal to noise, dB")
                        .build();
        plain(chart.getStyler());
        chart.getStyler().setXAxisDecimalPattern("0");
        curves.forEach(
                (cache, ratios) -> {
                    List<Integer> layers = new ArrayList<>();
                    List<Double> shown = new ArrayList<>();
                    for (int layer = 0; layer < ratios.size(); ++layer) {
                        if (ratios.get(layer) != null) {
                            layers.add(layer);
                            shown.add(ratios.get(layer));
                        }
                    }
                    if (!shown.isEmpty()) {
                        XYSeries series = chart.addSeries(shortened(cache), layers, shown);
                        // Colours come again after eight caches, with another stroke.
                        int round = (chart.getSeriesMap().size() - 1) / COLORS.length;
                        series.setMarker(SeriesMarkers.NONE);
                        series.setLineStyle(stroke(round));
                    }
                });
        save(chart, file);
    }

    private static BasicStroke stroke(int round) {
        float[] dash = round == 0 ? null : new float[] {round == 1 ? 8f : 2f, 4f};
        return new BasicStroke(1.8f, BasicStroke.CAP_BUTT, BasicStroke.JOIN_ROUND, 10f, dash, 0f);
    }

    /** Shares of keys found: a row for each cache, a column for each length and depth. */
    void needle(String file, Map<String, Map<String, Double>> cells) throws IOException {
        Set<String> found = new LinkedHashSet<>();
        cells.values().forEach(row -> found.addAll(row.keySet()));
        List<String> columns = List.copyOf(found);
        List<String> rows = new ArrayList<>(cells.keySet());
        Collections.reverse(rows);
        List<Number[]> values = new ArrayList<>();
        for (int x = 0; x < columns.size(); ++x) {
            for (int y = 0; y < rows.size(); ++y) {
                Double share = cells.get(rows.get(y)).get(columns.get(x));
                if (share != null) {
                    values.add(new Number[] {x, y, Math.round(100 * share)});
                }
            }
        }
        HeatMapChart chart =
                new HeatMapChartBuilder()
                        .width(Math.max(WIDTH, 300 + COLUMN_WIDTH * columns.size()))
                        .height(220 + ROW_HEIGHT * rows.size())
                        .title("Pass keys found, percent")
                        .xAxisTitle("tokens, depth")
                        .build();
        plain(chart.getStyler());
        chart.getStyler()
                .setMin(0)
                .setMax(100)
                .setShowValue(true)
                .setHeatMapValueDecimalPattern("0");
        chart.getStyler()
                .setRangeColors(
                        new Color[] {
                            new Color(0xb2182b), new Color(0xf7f7f7), new Color(0x4393c3)
                        });
        chart.getStyler().setXAxisLabelRotation(60);
        List<String> names = rows.stream().map(AccuracyPlots::shortened).toList();
        chart.addSeries("keys found", columns, names, values);
        save(chart, file);
    }

    private static void plain(Styler styler) {
        styler.setChartBackgroundColor(Color.WHITE);
        styler.setPlotBackgroundColor(Color.WHITE);
        styler.setSeriesColors(COLORS);
        styler.setLegendPosition(Styler.LegendPosition.OutsideE);
        styler.setLegendBorderColor(Color.WHITE);
        styler.setChartTitleBoxVisible(false);
    }

    private void save(Chart<?, ?> chart, String file) throws IOException {
        Files.createDirectories(directory);
        Files.write(
                directory.resolve(file),
                BitmapEncoder.getBitmapBytes(chart, BitmapEncoder.BitmapFormat.PNG));
    }
}
