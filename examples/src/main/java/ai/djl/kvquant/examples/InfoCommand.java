/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.cache.CacheDtype;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.KeyReads;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.engine.RuntimeInfo;
import ai.djl.kvquant.llama.LlamaConfig;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import java.io.IOException;
import java.io.PrintWriter;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.ParentCommand;
import picocli.CommandLine.Spec;

/** Tells what there is to compute with, and what fits. */
@Command(
        name = "info",
        description =
                "Tells versions, libraries and operators, the model's geometry, and what a token"
                        + " takes and how many fit with each cache; and why something is"
                        + " unavailable.")
final class InfoCommand implements Callable<Integer> {

    @ParentCommand private Kvq kvq;
    @Spec private CommandSpec spec;

    @Override
    public Integer call() throws Exception {
        RuntimeInfo runtime = RuntimeInfo.probe();
        Map<String, Object> versions = versions(runtime);
        if (runtime.operatorLibrary() == null) {
            print(versions, Map.of(), List.of(), runtime.problems());
            throw new IllegalStateException(String.join("; ", runtime.problems()));
        }
        try (Session session = Session.open(kvq)) {
            print(versions, model(session), presets(session), runtime.problems());
        }
        return 0;
    }

    private static Map<String, Object> versions(RuntimeInfo runtime) throws IOException {
        Map<String, Object> map = new LinkedHashMap<>();
        map.put("djl_kvquant", Versions.version());
        map.put("djl", runtime.djlVersion());
        map.put("libtorch", runtime.libtorchVersion());
        map.put("java", System.getProperty("java.version"));
        map.put("platform", System.getProperty("os.name") + " " + System.getProperty("os.arch"));
        map.put("processors", Runtime.getRuntime().availableProcessors());
        map.put("operator_library", runtime.operatorLibrary());
        map.put("operator_variant", runtime.operatorVariant());
        map.put("best_variant", runtime.bestVariant());
        map.put("operator_threads", runtime.threads());
        map.put("gpus", runtime.gpus());
        map.put("cuda_library", runtime.cudaLibrary());
        return map;
    }

    private Map<String, Object> model(Session session) {
        LlamaConfig config = session.model().config();
        Map<String, Object> map = new LinkedHashMap<>();
        map.put("model", session.name(kvq));
        map.put("architecture", config.architecture());
        map.put("layers", config.numLayers());
        map.put("hidden_size", config.hiddenSize());
        map.put("heads", config.numHeads());
        map.put("kv_heads", config.numKvHeads());
        map.put("head_dim", config.headDim());
        map.put("vocabulary", config.vocabSize());
        map.put("context", session.model().geometry().maxTokens());
        map.put("device", Devices.name(session.model().device()));
        map.put("dtype", session.model().weightType().toString());
        map.put("checkpoint_dtype", config.dtype().toString().toLowerCase(Locale.ROOT));
        return map;
    }

    /** Of the caches named, or of all. */
    private List<Map<String, Object>> presets(Session session) {
        String[] names = CacheDtype.names().toArray(String[]::new);
        List<Map<String, Object>> presets = new ArrayList<>();
        for (CacheOptions options : new CacheArguments(kvq, names).several(Map.of())) {
            Map<String, Object> map = new LinkedHashMap<>();
            map.put("kv_cache_dtype", options.dtype().name());
            try (LlamaLanguageModel model =
                    session.model().withCache(options.forSizes(session.model().geometry()))) {
                KvCache cache = model.cache();
                map.put("bits_per_key", cache.bitsPerKey());
                map.put("bits_per_value", cache.bitsPerValue());
                if (options.sparseTokens() > 0) {
                    putReads(map, cache.keyReads(cache.geometry().maxTokens()));
                }
                map.put("bytes_per_token", cache.bytesPerToken());
                map.put(
                        "against_fp16",
                        cache.geometry().fp16BytesPerToken() / cache.bytesPerToken());
                map.put("tokens_per_gib", (long) ((1L << 30) / cache.bytesPerToken()));
                map.put("tokens_that_fit", cache.capacity());
            } catch (IllegalArgumentException e) {
                map.put("unavailable", Errors.describe(e));
            }
            presets.add(map);
        }
        return presets;
    }

    /** At the longest context. */
    private static void putReads(Map<String, Object> map, KeyReads reads) {
        map.put("key_bits_read", reads.total());
        map.put("landmark_bits_read", reads.landmarks());
    }

    private void print(
            Map<String, Object> versions,
            Map<String, Object> model,
            List<Map<String, Object>> presets,
            List<String> problems) {
        PrintWriter out = spec.commandLine().getOut();
        if (kvq.json) {
            Map<String, Object> all = new LinkedHashMap<>(versions);
            all.putAll(model);
            all.put("presets", presets);
            all.put("unavailable", problems);
            out.println(Json.line(all));
            out.flush();
            return;
        }
        versions.forEach(
                (name, value) -> out.printf("%-18s%s%n", name, value == null ? "none" : value));
        out.println();
        model.forEach((name, value) -> out.printf("%-18s%s%n", name, value));
        out.println();
        printPresets(presets, out);
        problems.forEach(problem -> out.println("unavailable: " + problem));
        out.flush();
    }

    private static void reads(Map<String, Object> preset, PrintWriter out) {
        double bits = (double) preset.get("key_bits_read");
        out.printf(
                Locale.ROOT,
                "%s: a step at the longest context reads %.3f bits per key, %.0fx less than fp16;"
                        + " %.3f of them are landmarks%n",
                preset.get("kv_cache_dtype"),
                bits,
                16 / bits,
                preset.get("landmark_bits_read"));
    }

    private static void printPresets(List<Map<String, Object>> presets, PrintWriter out) {
        Table table =
                new Table(
                        "kv_cache_dtype",
                        "bits/key",
                        "bits/value",
                        "KiB/token",
                        "less than fp16",
                        "tokens/GiB",
                        "tokens that fit");
        List<String> reasons = new ArrayList<>();
        for (Map<String, Object> p : presets) {
            if (p.containsKey("unavailable")) {
                reasons.add(
                        "unavailable: " + p.get("kv_cache_dtype") + ": " + p.get("unavailable"));
                continue;
            }
            table.row(
                    p.get("kv_cache_dtype"),
                    Table.number((double) p.get("bits_per_key"), 2),
                    Table.number((double) p.get("bits_per_value"), 2),
                    Table.number((double) p.get("bytes_per_token") / 1024, 2),
                    Table.number((double) p.get("against_fp16"), 2) + "x",
                    p.get("tokens_per_gib"),
                    p.get("tokens_that_fit"));
        }
        table.print(out);
        out.println();
        presets.stream().filter(p -> p.containsKey("key_bits_read")).forEach(p -> reads(p, out));
        reasons.forEach(out::println);
    }
}
