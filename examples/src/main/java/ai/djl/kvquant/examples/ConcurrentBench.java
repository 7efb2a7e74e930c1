/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.generate.BatchLimits;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import java.io.PrintWriter;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import picocli.CommandLine.Option;

/**
 * What {@code kvq bench --concurrent} measures: requests together against the same one after the
 * other, and how long running streams wait for a token while a long prompt is computed.
 */
final class ConcurrentBench {

    @Option(
            names = "--concurrent",
            paramLabel = "N",
            description = "measure N requests at a time against the same one after the other")
    private int requests;

    @Option(
            names = "--tokens",
            paramLabel = "M",
            defaultValue = "256",
            description = "with --concurrent: new tokens of a request (default: ${DEFAULT-VALUE})")
    private int tokens;

    @Option(
            names = "--prompt-tokens",
            paramLabel = "P",
            defaultValue = "32",
            description = "with --concurrent: tokens of a prompt (default: ${DEFAULT-VALUE})")
    private int promptTokens;

    @Option(
            names = "--arriving-tokens",
            paramLabel = "L",
            defaultValue = "4000",
            description =
                    "with --concurrent: tokens of the prompt that arrives while others run; 0:"
                            + " none (default: ${DEFAULT-VALUE})")
    private int arrivingTokens;

    @Option(
            names = "--prefill-chunk-tokens",
            paramLabel = "C",
            description =
                    "with --concurrent: tokens of a prompt computed at a time (default: as a"
                            + " model has it)")
    private int prefillTokens = BatchLimits.DEFAULT.prefillTokens();

    boolean isAsked() {
        return requests != 0;
    }

    /**
     * Measures each cache and prints.
     *
     * @throws IllegalArgumentException if there is nothing to measure, or more than the model takes
     */
    void run(Kvq kvq, PrintWriter out) throws Exception {
        requireAtLeast("--concurrent", requests, 1);
        requireAtLeast("--tokens", tokens, 4);
        requireAtLeast("--prompt-tokens", promptTokens, 1);
        requireAtLeast("--arriving-tokens", arrivingTokens, 0);
        requireAtLeast("--prefill-chunk-tokens", prefillTokens, 1);
        List<ConcurrentRun.Figures> all = new ArrayList<>();
        List<CacheOptions> caches = new CacheArguments(kvq, "fp16", "int2").several(sizeOfCache());
        try (Session session = Session.open(kvq)) {
            requireContext(session.model().geometry().maxTokens());
            for (CacheOptions cache : session.complete(caches)) {
                all.add(measure(session, cache));
            }
        }
        print(all, kvq.json, out);
    }

    private static void requireAtLeast(String name, int value, int least) {
        if (value < least) {
            throw new IllegalArgumentException(
                    name + " is " + value + "; allowed: " + least + " or more.");
        }
    }

    private void requireContext(int context) {
        int longest = Math.max(promptTokens + tokens, arrivingTokens + 1);
        if (longest > context) {
            throw new IllegalArgumentException(
                    "A request would have "
                            + longest
                            + " tokens, but the model's context is "
                            + context
                            + "; lower --tokens, --prompt-tokens or --arriving-tokens.");
        }
    }

    private Map<String, String> sizeOfCache() {
        long each = (long) promptTokens + tokens + Contestant.ROOM;
        long total = requests * each + arrivingTokens + Contestant.ROOM;
        return Map.of(
                "kv_cache_tokens",
                Long.toString(total),
                "max_batch_size",
                Integer.toString(requests + 1));
    }

    /** Each part has a cache of its own, so that none takes over what another has computed. */
    private ConcurrentRun.Figures measure(Session session, CacheOptions cache) {
        BatchLimits limits = new BatchLimits(requests + 1, requests + 1, prefillTokens);
        ConcurrentRun.Shape shape =
                new ConcurrentRun.Shape(requests, promptTokens, tokens, arrivingTokens);
        double[] rates = new double[2];
        for (int i = 0; i < rates.length; ++i) {
            try (LlamaLanguageModel model = session.model().withCache(cache);
                    ConcurrentRun run = new ConcurrentRun(model, limits, shape)) {
                rates[i] = i == 0 ? run.oneAfterTheOther() : run.together();
            }
        }
        ConcurrentRun.Gaps gaps = ConcurrentRun.Gaps.NONE;
        if (arrivingTokens > 0) {
            try (LlamaLanguageModel model = session.model().withCache(cache);
                    ConcurrentRun run = new ConcurrentRun(model, limits, shape)) {
                gaps = run.gaps();
            }
        }
        return new ConcurrentRun.Figures(cache.dtype().name(), rates[0], rates[1], gaps);
    }

    private void print(List<ConcurrentRun.Figures> all, boolean json, PrintWriter out) {
        Table table =
                new Table(
                        "kv_cache_dtype",
                        "requests",
                        "alone tok/s",
                        "together tok/s",
                        "ratio",
                        "median gap ms",
                        "p99 after arrival",
                        "ratio",
                        "p99 in prefill",
                        "ratio");
        for (ConcurrentRun.Figures f : all) {
            if (json) {
                out.println(Json.line(json(f)));
                continue;
            }
            ConcurrentRun.Gaps gaps = f.gaps();
            table.row(
                    f.dtype(),
                    requests,
                    Table.number(f.alone(), 1),
                    Table.number(f.together(), 1),
                    Table.number(f.together() / f.alone(), 2),
                    Table.number(gaps.median(), 1),
                    Table.number(gaps.after(), 1),
                    Table.number(gaps.after() / gaps.median(), 2),
                    Table.number(gaps.during(), 1),
                    Table.number(gaps.during() / gaps.median(), 2));
        }
        if (!json) {
            table.print(out);
        }
        out.flush();
    }

    private Map<String, Object> json(ConcurrentRun.Figures f) {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("kv_cache_dtype", f.dtype());
        json.put("requests", requests);
        json.put("prompt_tokens", promptTokens);
        json.put("tokens", tokens);
        json.put("arriving_tokens", arrivingTokens);
        json.put("prefill_chunk_tokens", prefillTokens);
        json.put("alone_tokens_per_second", Json.round(f.alone(), 2));
        json.put("together_tokens_per_second", Json.round(f.together(), 2));
        json.put("together_ratio", Json.round(f.together() / f.alone(), 3));
        if (arrivingTokens > 0) {
            putGaps(f.gaps(), json);
        }
        return json;
    }

    private static void putGaps(ConcurrentRun.Gaps gaps, Map<String, Object> json) {
        json.put("gap_median_before_ms", Json.round(gaps.median(), 2));
        json.put("gap_p99_after_arrival_ms", Json.round(gaps.after(), 2));
        json.put("gap_p99_after_arrival_ratio", Json.round(gaps.after() / gaps.median(), 3));
        json.put("gap_p99_in_prefill_ms", Json.round(gaps.during(), 2));
        json.put("gap_p99_in_prefill_ratio", Json.round(gaps.during() / gaps.median(), 3));
        json.put("gap_longest_ms", Json.round(gaps.longest(), 2));
    }
}
