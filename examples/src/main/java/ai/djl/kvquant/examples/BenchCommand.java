/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.llama.LlamaModel;
import java.util.ArrayList;
import java.util.LinkedHashMap;
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
            "Caches take turns of a few decoding steps, so that what else the machine does hits all"
                    + " alike; ratios are against the first one named."
        })
final class BenchCommand implements Callable<Integer> {

    /**
     * Decoding steps of a turn: enough for the weights to dominate what the processor has cached.
     */
    private static final int TURN = 4;

    @ParentCommand private Kvq kvq;
    @Spec private CommandSpec spec;

    @Option(
            names = "--depth",
            paramLabel = "N",
            defaultValue = "512",
            description = "tokens in the cache before decoding (default: ${DEFAULT-VALUE})")
    private int depth;

    @Option(
            names = "--new-tokens",
            paramLabel = "M",
            defaultValue = "32",
            description = "decoding steps (default: ${DEFAULT-VALUE})")
    private int newTokens;

    @Option(
            names = "--batch",
            paramLabel = "B",
            defaultValue = "1",
            description = "sequences decoded together (default: ${DEFAULT-VALUE})")
    private int batch;

    @Mixin private ConcurrentBench concurrent;

    @Override
    public Integer call() throws Exception {
        if (concurrent.isAsked()) {
            concurrent.run(kvq, spec.commandLine().getOut());
            return 0;
        }
        requireAtLeast("--depth", depth, 0);
        requireAtLeast("--new-tokens", newTokens, 1);
        requireAtLeast("--batch", batch, 1);
        List<CacheOptions> caches = new CacheArguments(kvq, "fp16", "int2").several(sizeOfCache());
        List<Contestant> contestants = new ArrayList<>();
        try (Session session = Session.open(kvq)) {
            checkContext(session.model());
            for (CacheOptions cache : caches) {
                contestants.add(
                        new Contestant(session.model().withCache(session.complete(cache)), batch));
            }
            measure(contestants);
            print(contestants.stream().map(Contestant::figures).toList());
        } finally {
            contestants.forEach(Contestant::close);
        }
        return 0;
    }

    private void requireAtLeast(String name, int value, int least) {
        if (value < least) {
            throw new ParameterException(
                    spec.commandLine(),
                    name + " is " + value + "; allowed: " + least + " or more.");
        }
    }

    /** Room for what is measured and the warm-up, unless --set says otherwise. */
    private Map<String, String> sizeOfCache() {
        if (kvq.settings.containsKey("kv_cache_tokens")
                || kvq.settings.containsKey("kv_cache_memory")) {
            return Map.of("max_batch_size", Integer.toString(batch));
        }
        long tokens = (long) batch * (Contestant.ROOM + depth + newTokens);
        return Map.of(
                "kv_cache_tokens",
                Long.toString(tokens),
                "max_batch_size",
                Integer.toString(batch));
    }

    private void checkContext(LlamaModel model) {
        int context = model.geometry().maxTokens();
        if ((long) Math.max(1, depth) + newTokens > context) {
            throw new IllegalArgumentException(
                    "--depth and --new-tokens are "
                            + ((long) depth + newTokens)
                            + " tokens together, but the model's context is "
                            + context
                            + ".");
        }
    }

    private void measure(List<Contestant> contestants) {
        try (Progress progress =
                Progress.of("Benchmark", (long) contestants.size() * (1 + newTokens))) {
            contestants.forEach(Contestant::warmUp);
            for (Contestant contestant : contestants) {
                contestant.prefill(depth);
                progress.step();
            }
            for (int done = 0; done < newTokens; done += TURN) {
                int count = Math.min(TURN, newTokens - done);
                for (Contestant contestant : contestants) {
                    contestant.decode(count);
                    progress.stepBy(count);
                }
            }
        }
    }

    private void print(List<Contestant.Figures> all) {
        Contestant.Figures first = all.get(0);
        Table table =
                new Table(
                        "kv_cache_dtype",
                        "depth",
                        "batch",
                        "prefill tok/s",
                        "ratio",
                        "decode tok/s",
                        "ratio",
                        "KV cache",
                        "ratio");
        for (Contestant.Figures f : all) {
            double prefill = f.prefillRate() / first.prefillRate();
            double decode = f.decodeRate() / first.decodeRate();
            double bytes = (double) f.bytes() / first.bytes();
            if (kvq.json) {
                spec.commandLine().getOut().println(Json.line(json(f, prefill, decode, bytes)));
            }
            table.row(
                    f.dtype(),
                    depth,
                    batch,
                    Table.number(f.prefillRate(), 1),
                    Table.number(prefill, 2),
                    Table.number(f.decodeRate(), 1),
                    Table.number(decode, 2),
                    GenerationReport.bytes(f.bytes()),
                    Table.number(bytes, 2));
        }
        if (!kvq.json) {
            table.print(spec.commandLine().getOut());
        }
    }

    private Map<String, Object> json(
            Contestant.Figures f, double prefill, double decode, double bytes) {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("kv_cache_dtype", f.dtype());
        json.put("depth", depth);
        json.put("batch", batch);
        json.put("prefill_tokens_per_second", Json.round(f.prefillRate(), 2));
        json.put("decode_tokens_per_second", Json.round(f.decodeRate(), 2));
        json.put("kv_bytes", f.bytes());
        json.put("prefill_ratio", Json.round(prefill, 3));
        json.put("decode_ratio", Json.round(decode, 3));
        json.put("kv_bytes_ratio", Json.round(bytes, 4));
        return json;
    }
}
