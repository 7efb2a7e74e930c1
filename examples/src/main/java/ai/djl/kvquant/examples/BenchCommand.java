/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.llama.LlamaModel;
import java.io.PrintWriter;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.ParentCommand;
import picocli.CommandLine.Spec;

/** Measures speed and memory. */
@Command(
        name = "bench",
        description = {
            "Measures the speed of prefill and of decoding at a depth, and the bytes of the cache.",
            "On a CPU, caches take turns of a few decoding steps, so that what else the machine does"
                    + " hits all alike; on a GPU, one has it after the other. Ratios are against the"
                    + " first one named."
        })
final class BenchCommand implements Callable<Integer> {

    @ParentCommand private Kvq kvq;
    @Spec private CommandSpec spec;

    @Option(
            names = "--depth",
            paramLabel = "N",
            split = ",",
            defaultValue = "512",
            description =
                    "tokens in the cache before decoding, or max: as many as fit; several with"
                            + " commas (default: ${DEFAULT-VALUE})")
    private List<String> depths;

    @Option(
            names = "--new-tokens",
            paramLabel = "M",
            defaultValue = "32",
            description = "decoding steps (default: ${DEFAULT-VALUE})")
    private int newTokens;

    @Option(
            names = "--batch",
            paramLabel = "B",
            split = ",",
            defaultValue = "1",
            description =
                    "sequences decoded together, or max: as many as fit; several with commas"
                            + " (default: ${DEFAULT-VALUE})")
    private List<String> batches;

    @Option(
            names = "--fill",
            paramLabel = "WITH",
            defaultValue = "prompt",
            description =
                    "how tokens come into the cache: prompt, by prefill, or random, as random keys"
                            + " and values without prefill (default: ${DEFAULT-VALUE})")
    private String fill;

    @Option(names = "--markdown", description = "print the table as Markdown")
    private boolean markdown;

    @Mixin private ConcurrentBench concurrent;

    @Override
    public Integer call() throws Exception {
        if (concurrent.isAsked()) {
            concurrent.run(kvq, spec.commandLine().getOut());
            return 0;
        }
        List<BenchCase> cases = cases();
        CacheArguments arguments = new CacheArguments(kvq, "fp16", "int2");
        boolean sized =
                kvq.settings.containsKey("kv_cache_tokens")
                        || kvq.settings.containsKey("kv_cache_memory");
        arguments.several(Map.of());
        try (Session session = Session.open(kvq)) {
            cases.forEach(one -> checkContext(session.model(), one));
            BenchReport report = new BenchReport();
            BenchRun run =
                    new BenchRun(
                            session,
                            size -> arguments.several(sized ? batchOnly(size) : size),
                            newTokens,
                            "random".equals(fill));
            for (BenchCase one : cases) {
                List<Contestant.Figures> figures = run.run(one);
                report.add(figures);
                if (kvq.json) {
                    for (Contestant.Figures f : figures) {
                        out().println(BenchReport.json(f, figures.get(0)));
                    }
                    out().flush();
                }
            }
            if (!kvq.json) {
                report.print(out(), markdown);
            }
            return report.isEmpty() ? 1 : 0;
        }
    }

    private PrintWriter out() {
        return spec.commandLine().getOut();
    }

    private List<BenchCase> cases() {
        if (newTokens < 1) {
            throw wrong("--new-tokens is " + newTokens + "; allowed: 1 or more.");
        }
        if (!List.of("prompt", "random").contains(fill)) {
            throw wrong("--fill is " + fill + "; allowed: prompt, random.");
        }
        try {
            return BenchCase.of(depths, batches);
        } catch (IllegalArgumentException e) {
            throw wrong(e.getMessage());
        }
    }

    private ParameterException wrong(String message) {
        return new ParameterException(spec.commandLine(), message);
    }

    /** Where --set says how large the cache is. */
    private static Map<String, String> batchOnly(Map<String, String> size) {
        Map<String, String> batch = new HashMap<>(size);
        batch.remove("kv_cache_tokens");
        return batch;
    }

    private void checkContext(LlamaModel model, BenchCase at) {
        int context = model.geometry().maxTokens();
        if ((long) Math.max(1, at.depth()) + newTokens > context) {
            throw new IllegalArgumentException(
                    "--depth and --new-tokens are "
                            + ((long) at.depth() + newTokens)
                            + " tokens together, but the model's context is "
                            + context
                            + ".");
        }
    }
}
