/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.examples.Kvq;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** {@code kvq eval} on a small model: all parts, and parts that complete each other. */
class EvalCommandTest {

    @TempDir Path directory;
    private Path model;
    private Path text;
    private Path output;

    @BeforeEach
    void prepare() throws Exception {
        model = Files.createDirectory(directory.resolve("small"));
        SmallModel.copy("gqa3-tied", model).tokenizer();
        text = Files.writeString(directory.resolve("words.txt"), words(300));
        output = directory.resolve("report");
    }

    private static String words(int count) {
        return Arrays.stream(SmallModel.prompt(count, 4))
                .mapToObj(i -> "w" + i)
                .collect(Collectors.joining(" "));
    }

    private String run(int exitCode, String... arguments) {
        List<String> args = new ArrayList<>(List.of("eval", "--model", model.toString()));
        args.addAll(List.of("--output", output.toString(), "--context", "64", "--windows", "2"));
        args.addAll(List.of("--needle-length", "150", "--needle-trials", "2", "--json"));
        args.addAll(List.of("--needle-depth", "0,100", "--text", text.toString()));
        args.addAll(Arrays.asList(arguments));
        StringWriter out = new StringWriter();
        StringWriter err = new StringWriter();
        int code = Kvq.run(args.toArray(String[]::new), new PrintWriter(out), new PrintWriter(err));
        assertEquals(exitCode, code, err.toString());
        return code == 0 ? out.toString() : err.toString().strip();
    }

    private static List<JsonObject> rows(String out, String part) {
        return out.lines()
                .map(line -> JsonParser.parseString(line).getAsJsonObject())
                .filter(row -> part.equals(row.get("part").getAsString()))
                .toList();
    }

    private static List<String> caches(List<JsonObject> rows) {
        return rows.stream().map(row -> row.get("cache").getAsString()).toList();
    }

    @Test
    void allPartsAreMeasuredAndReported() throws Exception {
        Path other = Files.writeString(directory.resolve("few.txt"), words(70));
        String out =
                run(
                        0,
                        "--text",
                        other.toString(),
                        "--kv-cache-dtype",
                        "fp16",
                        "--kv-cache-dtype",
                        "rotatekv4:kv_recent_tokens=16:kv_sink_tokens=4");
        String rotated = "rotatekv4:kv_recent_tokens=16:kv_sink_tokens=4";
        List<JsonObject> perplexity = rows(out, "perplexity");
        List<String> twice = List.of("auto", "fp16", rotated, "auto", "fp16", rotated);
        assertEquals(twice, caches(perplexity));
        assertEquals(0, perplexity.get(0).get("mean_kl").getAsDouble());
        assertTrue(perplexity.get(2).get("mean_kl").getAsDouble() > 0);
        assertEquals(126, perplexity.get(2).get("tokens").getAsInt());
        assertEquals(63, perplexity.get(5).get("tokens").getAsInt());
        // 48 of 64 tokens in pages, 16 recent ones and 4 sinks in 16 bits.
        double bits = (48 * 4.5 + 20 * 16) / 64;
        assertEquals(bits, perplexity.get(2).get("stored_bits_per_key").getAsDouble(), 1e-9);
        assertEquals(16, perplexity.get(1).get("stored_bits_per_value").getAsDouble());
        List<JsonObject> layers = rows(out, "layers");
        assertEquals(List.of("fp16", rotated), caches(layers));
        assertEquals(2, layers.get(0).getAsJsonArray("keys").size());
        List<JsonObject> needle = rows(out, "needle");
        assertEquals(twice, caches(needle));
        needle.forEach(row -> assertEquals(2, row.get("trials").getAsInt()));
        String report = Files.readString(output.resolve("accuracy.md"));
        assertTrue(report.contains("kvq eval --model small --output report --context 64"), report);
        assertFalse(report.contains(directory.toString()), report);
        assertTrue(report.contains("### few.txt\n\n1 window, 63"), report);
        assertTrue(Files.size(output.resolve("needle.png")) > 1000);
    }

    /** Sums differ by rounding alone, pass keys not at all. */
    @Test
    void jobsShareWindowsAndPrompts() throws Exception {
        String cache = "--kv-cache-dtype=rotatekv3";
        String shared = run(0, "--measure", "perplexity,needle", cache, "--jobs", "3");
        Files.delete(output.resolve("perplexity.json"));
        Files.delete(output.resolve("needle.json"));
        String alone = run(0, "--measure", "perplexity,needle", cache);
        assertEquals(rows(alone, "needle"), rows(shared, "needle"));
        for (int i = 0; i < 2; ++i) {
            JsonObject one = rows(alone, "perplexity").get(i);
            JsonObject three = rows(shared, "perplexity").get(i);
            assertEquals(one.get("windows"), three.get("windows"));
            for (String figure : List.of("perplexity", "mean_kl", "top1_agreement")) {
                double expected = one.get(figure).getAsDouble();
                assertEquals(expected, three.get(figure).getAsDouble(), 1e-6, figure);
            }
        }
    }

    @Test
    void aLaterRunCompletesAnEarlierOne() throws Exception {
        run(0, "--measure", "perplexity", "--kv-cache-dtype", "rotatekv3");
        String first = Files.readString(output.resolve("perplexity.json"));
        assertTrue(run(1, "--measure", "needle").contains("holds results already; add --reuse"));
        String[] two = {"--kv-cache-dtype", "rotatekv3", "--kv-cache-dtype", "fp16", "--reuse"};
        String out = run(0, two);
        assertEquals(List.of("auto", "rotatekv3", "fp16"), caches(rows(out, "perplexity")));
        assertEquals(2, rows(out, "layers").size());
        assertEquals(6, rows(out, "needle").size());
        String second = Files.readString(output.resolve("perplexity.json"));
        JsonObject before = JsonParser.parseString(first).getAsJsonObject();
        JsonObject after = JsonParser.parseString(second).getAsJsonObject();
        for (int i = 0; i < 2; ++i) {
            assertEquals(before.getAsJsonArray("rows").get(i), after.getAsJsonArray("rows").get(i));
        }
        assertEquals(2, after.getAsJsonArray("runs").size());
        // Nothing is left to measure.
        assertEquals(out, run(0, two));
        assertEquals(second, Files.readString(output.resolve("perplexity.json")));
        String error = run(1, "--measure", "needle", "--reuse", "--seed", "2");
        assertTrue(error.contains("seed=1") && error.contains("seed=2"), error);
    }
}
