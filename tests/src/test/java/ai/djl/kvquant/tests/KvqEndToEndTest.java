/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.CacheDtype;
import ai.djl.kvquant.examples.Kvq;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Every command of the command line on the default model, briefly. */
class KvqEndToEndTest {

    private record Run(String out, String err) {

        List<JsonObject> json() {
            return out.lines().map(l -> JsonParser.parseString(l).getAsJsonObject()).toList();
        }
    }

    private static Run run(String... arguments) {
        return runModel(DefaultModel.directory().toString(), arguments);
    }

    private static Run runModel(String model, String... arguments) {
        return runModel(0, model, arguments);
    }

    private static Run runModel(int expected, String model, String... arguments) {
        List<String> args = new ArrayList<>(Arrays.asList(arguments));
        args.add("--model");
        args.add(model);
        StringWriter out = new StringWriter();
        StringWriter err = new StringWriter();
        int exitCode =
                Kvq.run(args.toArray(String[]::new), new PrintWriter(out), new PrintWriter(err));
        assertEquals(expected, exitCode, err.toString());
        return new Run(out.toString(), err.toString());
    }

    private static void assertKeys(String keys, JsonObject object) {
        assertEquals(List.of(keys.split(" ")), List.copyOf(object.keySet()));
    }

    private static final String GENERATION_KEYS =
            "text prompt_tokens new_tokens finish_reason ttft_ms tokens_per_second kv_cache_dtype bits_per_key"
                    + " bits_per_value key_bits_read kv_bytes kv_bytes_fp16";

    @Test
    void generateAnswersOnStdoutAndTellsFiguresOnStderr() {
        Run run = run("generate", "--max-new-tokens", "12", "What is the capital of France?");
        assertTrue(run.out().contains("Paris"), run.out());
        assertTrue(
                run.err()
                        .strip()
                        .matches(
                                "\\d+ tokens.*, [0-9.]+ tok/s, first after \\d+ ms; KV cache"
                                        + " int2 .* than fp16's .*"),
                run.err());
    }

    @Test
    void generatedJsonIsTheSameText() {
        String[] arguments = {
            "generate", "--raw", "--max-new-tokens", "8", "--kv-cache-dtype", "fp16", "The sky is"
        };
        String text = run(arguments).out();
        String[] withJson = Arrays.copyOf(arguments, arguments.length + 1);
        withJson[arguments.length] = "--json";
        Run run = run(withJson);
        JsonObject json = run.json().get(0);
        assertEquals(1, run.json().size());
        assertKeys(GENERATION_KEYS, json);
        assertEquals(text, json.get("text").getAsString() + System.lineSeparator());
        assertEquals(3, json.get("prompt_tokens").getAsInt());
        assertEquals(8, json.get("new_tokens").getAsInt());
        assertEquals("length", json.get("finish_reason").getAsString());
        assertEquals("fp16", json.get("kv_cache_dtype").getAsString());
        // 11 tokens but the last, which is not read any more.
        assertEquals(10 * 23040, json.get("kv_bytes_fp16").getAsLong());
        assertEquals("", run.err());
    }

    @Test
    void aPromptComesFromAFile(@TempDir Path directory) throws Exception {
        Path file = Files.writeString(directory.resolve("prompt.txt"), "One two three four five");
        Run run =
                run(
                        "generate",
                        "--raw",
                        "--max-new-tokens",
                        "1",
                        "--json",
                        "--file",
                        file.toString());
        assertEquals(5, run.json().get(0).get("prompt_tokens").getAsInt());
    }

    @Test
    void chatKeepsTheConversation() {
        InputStream stdin = System.in;
        String lines = "My name is Bob.\n\nWhat is my name?\n/reset\nHello\n/exit\nnot read\n";
        System.setIn(new ByteArrayInputStream(lines.getBytes(StandardCharsets.UTF_8)));
        try {
            List<JsonObject> turns = run("chat", "--json", "--max-new-tokens", "8").json();
            assertEquals(3, turns.size());
            turns.forEach(turn -> assertKeys(GENERATION_KEYS, turn));
            int first = turns.get(0).get("prompt_tokens").getAsInt();
            assertTrue(turns.get(1).get("prompt_tokens").getAsInt() > first + 8);
            assertTrue(turns.get(2).get("prompt_tokens").getAsInt() < first);
        } finally {
            System.setIn(stdin);
        }
    }

    @Test
    void perplexityComparesCaches() {
        String licence = DefaultModel.repositoryRoot().resolve("LICENSE").toString();
        Run run =
                run(
                        "perplexity",
                        "--json",
                        "--text",
                        licence,
                        "--context",
                        "64",
                        "--windows",
                        "2",
                        "--kv-cache-dtype",
                        "rotatekv2",
                        "--kv-cache-dtype",
                        "auto");
        assertEquals("", run.err());
        List<JsonObject> caches = run.json();
        assertEquals(2, caches.size());
        assertKeys(
                "kv_cache_dtype perplexity windows tokens bits_per_key bits_per_value mean_kl"
                        + " top1_agreement",
                caches.get(0));
        assertEquals("rotatekv2", caches.get(0).get("kv_cache_dtype").getAsString());
        assertEquals(126, caches.get(0).get("tokens").getAsInt());
        assertTrue(caches.get(0).get("mean_kl").getAsDouble() > 0.1);
        assertEquals(0, caches.get(1).get("mean_kl").getAsDouble());
    }

    @Test
    void benchComparesWithTheFirst() {
        Run run =
                run(
                        "bench",
                        "--json",
                        "--depth",
                        "70",
                        "--new-tokens",
                        "5",
                        "--batch",
                        "2",
                        "--kv-cache-dtype",
                        "fp16",
                        "--kv-cache-dtype",
                        "rotatekv2");
        assertEquals("", run.err());
        List<JsonObject> caches = run.json();
        assertKeys(
                "kv_cache_dtype depth batch prefill_tokens_per_second decode_tokens_per_second"
                        + " kv_bytes prefill_ratio decode_ratio kv_bytes_ratio depth_ratio"
                        + " batch_ratio",
                caches.get(0));
        assertEquals(1, caches.get(0).get("decode_ratio").getAsDouble());
        assertEquals(1, caches.get(0).get("kv_bytes_ratio").getAsDouble());
        assertTrue(caches.get(1).get("kv_bytes_ratio").getAsDouble() < 1);
        assertTrue(caches.get(1).get("decode_tokens_per_second").getAsDouble() > 0);
    }

    @Test
    void benchFillsRandomModelsAndFindsWhatFits() {
        String[] args = {
            "bench",
            "--json",
            "--fill",
            "random",
            "--new-tokens",
            "2",
            "--depth",
            "100,max",
            "--set",
            "kv_cache_memory=40MB",
            "--kv-cache-dtype",
            "fp16",
            "--kv-cache-dtype",
            "rotatekv2"
        };
        Run run = runModel("random:smollm2-135m", args);
        assertEquals("", run.err());
        List<JsonObject> caches = run.json();
        assertEquals(4, caches.size());
        assertKeys(
                "kv_cache_dtype depth batch decode_tokens_per_second kv_bytes decode_ratio"
                        + " kv_bytes_ratio depth_ratio batch_ratio",
                caches.get(0));
        assertEquals(100, caches.get(1).get("depth").getAsInt());
        int half = caches.get(2).get("depth").getAsInt();
        int quantized = caches.get(3).get("depth").getAsInt();
        assertTrue(half > 1000 && quantized > 4 * half, half + " and " + quantized);
        assertTrue(caches.get(2).get("kv_bytes").getAsLong() <= 40 << 20);
    }

    @Test
    void benchThatMeasuresNothingFails() {
        String[] args = {
            "bench",
            "--json",
            "--fill",
            "random",
            "--set",
            "kv_cache_memory=1k",
            "--kv-cache-dtype",
            "fp16"
        };
        Run run = runModel(1, "random:smollm2-135m", args);
        assertKeys("kv_cache_dtype depth batch error", run.json().get(0));
    }

    @Test
    void infoTellsWhatFits() {
        JsonObject info = run("info", "--json").json().get(0);
        assertEquals(3, info.get("kv_heads").getAsInt());
        assertEquals("auto", info.get("dtype").getAsString());
        assertFalse(info.get("operator_variant").isJsonNull());
        Map<String, Double> smaller = new HashMap<>();
        info.getAsJsonArray("presets")
                .forEach(
                        preset ->
                                smaller.put(
                                        preset.getAsJsonObject()
                                                .get("kv_cache_dtype")
                                                .getAsString(),
                                        preset.getAsJsonObject()
                                                .get("against_fp16")
                                                .getAsDouble()));
        assertEquals(Set.copyOf(CacheDtype.names()), smaller.keySet());
        assertTrue(smaller.get("rotatekv2") > 6, smaller.toString());
        assertTrue(smaller.get("int2") > 7, smaller.toString());
        assertTrue(run("info").out().contains("tokens that fit"));
    }
}
