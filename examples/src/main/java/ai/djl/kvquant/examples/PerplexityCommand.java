/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.evaluate.Perplexity;
import ai.djl.kvquant.evaluate.PerplexityResult;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParentCommand;
import picocli.CommandLine.Spec;

/** Measures what caches cost in accuracy. */
@Command(
        name = "perplexity",
        description =
                "Measures the perplexity of a text under each cache, and how far its predictions"
                        + " are from those of the cache auto.")
final class PerplexityCommand implements Callable<Integer> {

    @ParentCommand private Kvq kvq;
    @Spec private CommandSpec spec;

    @Option(names = "--text", required = true, paramLabel = "FILE", description = "the text")
    private Path text;

    @Mixin private WindowOptions windows;

    @Override
    public Integer call() throws Exception {
        List<CacheArguments.Named> caches = new CacheArguments(kvq, "auto", "int2").named(Map.of());
        String content = Texts.read(text, "--text");
        try (Session session = Session.open(kvq)) {
            int[] tokens = Perplexity.tokenize(session.tokenizer(), content);
            List<CacheOptions> options =
                    session.complete(caches.stream().map(CacheArguments.Named::options).toList());
            List<int[]> chosen =
                    Perplexity.windows(tokens, windows.context(), windows.of(tokens.length));
            print(caches, measure(session, options, chosen));
        }
        return 0;
    }

    private List<PerplexityResult> measure(
            Session session, List<CacheOptions> caches, List<int[]> chosen) {
        try (Perplexity perplexity = new Perplexity(session.model(), caches, windows.context());
                Progress progress = Progress.of("Perplexity", chosen.size())) {
            for (int[] window : chosen) {
                perplexity.add(window);
                progress.step();
            }
            return perplexity.results();
        }
    }

    private void print(List<CacheArguments.Named> caches, List<PerplexityResult> results) {
        if (kvq.json) {
            for (int i = 0; i < results.size(); ++i) {
                Map<String, Object> json = json(caches.get(i).label(), results.get(i));
                spec.commandLine().getOut().println(Json.line(json));
            }
            return;
        }
        Table table =
                new Table(
                        "kv_cache_dtype",
                        "perplexity",
                        "windows",
                        "tokens",
                        "bits/key",
                        "bits/value",
                        "mean KL",
                        "top-1");
        for (int i = 0; i < results.size(); ++i) {
            PerplexityResult r = results.get(i);
            table.row(
                    caches.get(i).label(),
                    Table.number(r.perplexity(), 4),
                    r.windows(),
                    r.tokens(),
                    Table.number(r.bitsPerKey(), 2),
                    Table.number(r.bitsPerValue(), 2),
                    Table.number(r.meanKl(), 5),
                    Table.number(100 * r.top1Agreement(), 2) + " %");
        }
        table.print(spec.commandLine().getOut());
    }

    private static Map<String, Object> json(String label, PerplexityResult r) {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("kv_cache_dtype", label);
        json.put("perplexity", r.perplexity());
        json.put("windows", r.windows());
        json.put("tokens", r.tokens());
        json.put("bits_per_key", r.bitsPerKey());
        json.put("bits_per_value", r.bitsPerValue());
        json.put("mean_kl", r.meanKl());
        json.put("top1_agreement", r.top1Agreement());
        return json;
    }
}
