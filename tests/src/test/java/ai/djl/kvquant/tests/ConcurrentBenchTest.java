/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.examples.Kvq;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The figures of {@code kvq bench --concurrent} are there and fit together. */
class ConcurrentBenchTest {

    @TempDir Path directory;

    private int run(StringWriter out, StringWriter err, String... arguments) throws Exception {
        SmallModel model = SmallModel.in(directory).tokenizer();
        List<String> args = new ArrayList<>(List.of("bench", "--json", "--kv-cache-dtype", "fp16"));
        args.addAll(List.of("--model", model.directory().toString()));
        args.addAll(List.of(arguments));
        return Kvq.run(args.toArray(String[]::new), new PrintWriter(out), new PrintWriter(err));
    }

    @Test
    void measuresRequestsTogetherAndGaps() throws Exception {
        StringWriter out = new StringWriter();
        StringWriter err = new StringWriter();
        int exitCode =
                run(
                        out,
                        err,
                        "--concurrent",
                        "3",
                        "--tokens",
                        "40",
                        "--arriving-tokens",
                        "400",
                        "--prefill-chunk-tokens",
                        "64");
        assertEquals(0, exitCode, err.toString());
        JsonObject json = JsonParser.parseString(out.toString()).getAsJsonObject();
        double alone = json.get("alone_tokens_per_second").getAsDouble();
        double together = json.get("together_tokens_per_second").getAsDouble();
        assertTrue(alone > 0 && together > 0, json.toString());
        assertEquals(together / alone, json.get("together_ratio").getAsDouble(), 0.05);
        double median = json.get("gap_median_before_ms").getAsDouble();
        double after = json.get("gap_p99_after_arrival_ms").getAsDouble();
        assertTrue(median > 0 && after > 0, json.toString());
        assertTrue(json.get("gap_longest_ms").getAsDouble() >= after, json.toString());
    }

    @Test
    void tellsWhatDoesNotFit() throws Exception {
        StringWriter err = new StringWriter();
        assertEquals(1, run(new StringWriter(), err, "--concurrent", "2"));
        String text = err.toString();
        assertTrue(text.contains("4001 tokens") && text.contains("context is 512"), text);
    }
}
