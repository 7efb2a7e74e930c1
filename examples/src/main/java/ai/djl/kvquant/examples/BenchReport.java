/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.io.PrintWriter;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What a benchmark measured, as a table, as Markdown or as JSON; ratios are to the first cache. */
final class BenchReport {

    private static final String[] HEADER = {
        "kv_cache_dtype",
        "depth",
        "batch",
        "prefill tok/s",
        "ratio",
        "decode tok/s",
        "ratio",
        "KV cache",
        "ratio",
        "GPU memory"
    };
    private static final String NONE = "-";

    private final List<Object[]> rows = new ArrayList<>();
    private final List<String> failures = new ArrayList<>();
    private boolean gpu;

    /** Adds the caches of a case; those that failed have no ratios. */
    void add(List<Contestant.Figures> all) {
        Contestant.Figures first = all.get(0);
        for (Contestant.Figures f : all) {
            if (f.error() != null) {
                failures.add(name(f) + ": " + f.error());
                continue;
            }
            gpu |= f.deviceBytes() > 0;
            rows.add(
                    new Object[] {
                        f.dtype(),
                        count(f.at().depth(), first.at().depth()),
                        count(f.at().batch(), first.at().batch()),
                        f.prefillRate() == 0 ? NONE : Table.number(f.prefillRate(), 1),
                        ratio(f.prefillRate(), first.prefillRate()),
                        Table.number(f.decodeRate(), 1),
                        ratio(f.decodeRate(), first.decodeRate()),
                        GenerationReport.bytes(f.bytes()),
                        ratio(f.bytes(), first.bytes()),
                        f.deviceBytes() == 0 ? NONE : GenerationReport.bytes(f.deviceBytes())
                    });
        }
    }

    /** Whether no cache could be measured. */
    boolean isEmpty() {
        return rows.isEmpty();
    }

    private static String name(Contestant.Figures f) {
        return f.dtype()
                + (f.at().depth() == BenchCase.MAX ? "" : " at depth " + f.at().depth())
                + (f.at().batch() == BenchCase.MAX ? "" : ", batch " + f.at().batch());
    }

    /** A count with its ratio where caches have different ones. */
    private static String count(int value, int first) {
        return value == first || first < 1
                ? Integer.toString(value)
                : value + " (" + Table.number((double) value / first, 2) + "x)";
    }

    private static String ratio(double value, double first) {
        return value == 0 || first == 0 ? NONE : Table.number(value / first, 2);
    }

    void print(PrintWriter out, boolean markdown) {
        int columns = gpu ? HEADER.length : HEADER.length - 1;
        if (markdown) {
            MarkdownTable table = new MarkdownTable(cut(HEADER, columns));
            rows.forEach(row -> table.row(Arrays.copyOf(row, columns)));
            out.print(table);
        } else {
            Table table = new Table(cut(HEADER, columns));
            rows.forEach(row -> table.row(Arrays.copyOf(row, columns)));
            table.print(out);
        }
        failures.forEach(failure -> out.println("not measured: " + failure));
        out.flush();
    }

    private static String[] cut(String[] header, int columns) {
        return Arrays.copyOf(header, columns);
    }

    /** A line of JSON for a cache. */
    static String json(Contestant.Figures f, Contestant.Figures first) {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("kv_cache_dtype", f.dtype());
        json.put("depth", f.at().depth());
        json.put("batch", f.at().batch());
        if (f.error() != null) {
            json.put("error", f.error());
            return Json.line(json);
        }
        if (f.prefillRate() > 0) {
            json.put("prefill_tokens_per_second", Json.round(f.prefillRate(), 2));
        }
        json.put("decode_tokens_per_second", Json.round(f.decodeRate(), 2));
        json.put("kv_bytes", f.bytes());
        if (f.deviceBytes() > 0) {
            json.put("gpu_bytes", f.deviceBytes());
        }
        if (first.error() == null) {
            if (f.prefillRate() > 0) {
                json.put("prefill_ratio", Json.round(f.prefillRate() / first.prefillRate(), 3));
            }
            json.put("decode_ratio", Json.round(f.decodeRate() / first.decodeRate(), 3));
            json.put("kv_bytes_ratio", Json.round((double) f.bytes() / first.bytes(), 4));
            json.put("depth_ratio", Json.round((double) f.at().depth() / first.at().depth(), 3));
            json.put("batch_ratio", Json.round((double) f.at().batch() / first.at().batch(), 3));
        }
        return Json.line(json);
    }
}
