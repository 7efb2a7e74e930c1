/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.djl.engine.EngineException;
import ai.djl.kvquant.generate.CacheUsage;
import ai.djl.kvquant.generate.FinishReason;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.GenerationResult;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.NoSuchFileException;
import java.time.Duration;
import java.util.List;
import org.junit.jupiter.api.Test;

/** Tables, figures, JSON and errors as they are printed. */
class OutputTest {

    private static GenerationResult result(FinishReason reason, long bytes) {
        return new GenerationResult(
                new int[] {5, 6, 2},
                "An \"answer\"",
                reason,
                "",
                false,
                40,
                List.of(),
                List.of(),
                Duration.ofMillis(312),
                45.678,
                new CacheUsage(bytes, 4 << 20, 4.5, 4.25, 4.5, "rotatekv4"));
    }

    @Test
    void aGenerationEndsWithOneLineOfFigures() {
        GenerationConfig config = GenerationConfig.builder().optMaxNewTokens(3).build();
        assertEquals(
                "3 tokens, 45.7 tok/s, first after 312 ms; KV cache rotatekv4 1.0 MiB, 4.0x less"
                        + " than fp16's 4.0 MiB",
                GenerationReport.line(result(FinishReason.EOS, 1 << 20), config));
        assertEquals(
                "3 tokens (the limit, --max-new-tokens 3), 45.7 tok/s, first after 312 ms; KV cache"
                        + " rotatekv4 8.0 MiB, 2.0x more than fp16's 4.0 MiB",
                GenerationReport.line(result(FinishReason.LENGTH, 8 << 20), config));
    }

    @Test
    void jsonHasTheseKeysOnOneLine() {
        assertEquals(
                "{\"text\":\"An \\\"answer\\\"\",\"prompt_tokens\":40,\"new_tokens\":3,"
                        + "\"finish_reason\":\"eos\",\"ttft_ms\":312.0,\"tokens_per_second\":45.68,"
                        + "\"kv_cache_dtype\":\"rotatekv4\",\"bits_per_key\":4.5,"
                        + "\"bits_per_value\":4.25,\"key_bits_read\":4.5,"
                        + "\"kv_bytes\":1048576,\"kv_bytes_fp16\":4194304}",
                Json.line(GenerationReport.json(result(FinishReason.EOS, 1 << 20))));
    }

    @Test
    void tablesAlignNumbersRight() {
        Table table = new Table("name", "count");
        table.row("a", 7);
        table.row("longer", 1234567);
        StringWriter out = new StringWriter();
        PrintWriter writer = new PrintWriter(out);
        table.print(writer);
        assertEquals(
                List.of("name      count", "a             7", "longer  1234567"),
                out.toString().lines().toList());
    }

    @Test
    void errorsAreOneLine() {
        assertEquals(
                "kvquant::append: bad",
                Errors.describe(new EngineException("\n kvquant::append: bad\nat x\n")));
        assertEquals("There is no file /x.", Errors.describe(new NoSuchFileException("/x")));
        assertEquals(
                "java.lang.NullPointerException: y. Run it again with --verbose for its origin.",
                Errors.describe(new NullPointerException("y")));
    }
}
