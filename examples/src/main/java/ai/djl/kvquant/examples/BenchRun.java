/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.engine.EngineException;
import ai.djl.kvquant.cache.CacheFullException;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.llama.LlamaModel;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;

/** Measures caches of one model at a depth and batch. */
final class BenchRun {

    /**
     * Decoding steps of a turn: enough for the weights to dominate what the processor has cached.
     */
    private static final int TURN = 4;

    private final Session session;
    private final LlamaModel model;
    private final Function<Map<String, String>, List<CacheOptions>> caches;
    private final int newTokens;
    private final boolean random;

    /**
     * Prepares to measure.
     *
     * @param caches the caches, given their sizes
     * @param random whether caches are filled with random keys and values
     */
    BenchRun(
            Session session,
            Function<Map<String, String>, List<CacheOptions>> caches,
            int newTokens,
            boolean random) {
        this.session = session;
        this.caches = caches;
        this.newTokens = newTokens;
        this.random = random;
        model = session.model();
    }

    List<Contestant.Figures> run(BenchCase at) throws Exception {
        // A GPU's memory is taken at once, and nobody else uses it: one after the other.
        return at.hasMax() || random || model.device().isGpu() ? alone(at) : inTurns(at);
    }

    private List<Contestant.Figures> alone(BenchCase wanted) throws Exception {
        List<Contestant.Figures> all = new ArrayList<>();
        List<CacheOptions> kinds = caches.apply(Map.of());
        for (int i = 0; i < kinds.size(); ++i) {
            CacheOptions options = session.complete(kinds.get(i));
            BenchCase at = wanted;
            try {
                int room = Contestant.ROOM + newTokens;
                at = BenchSizes.resolve(wanted, model, options, room);
                CacheOptions sized = session.complete(caches.apply(size(at)).get(i));
                all.add(measure(new Contestant(model.withCache(sized), at.batch()), at.depth()));
            } catch (CacheFullException | EngineException | IllegalArgumentException e) {
                all.add(Contestant.Figures.failed(options.dtype().name(), at, Errors.describe(e)));
            }
            model.releaseCachedMemory();
        }
        return all;
    }

    private Contestant.Figures measure(Contestant contestant, int depth) {
        try (contestant) {
            if (random) {
                contestant.fill(depth);
            } else {
                contestant.warmUp();
                contestant.prefill(depth);
            }
            contestant.decode(newTokens);
            return contestant.figures();
        }
    }

    private List<Contestant.Figures> inTurns(BenchCase at) throws Exception {
        List<Contestant> contestants = new ArrayList<>();
        try {
            for (CacheOptions options : caches.apply(size(at))) {
                contestants.add(
                        new Contestant(model.withCache(session.complete(options)), at.batch()));
            }
            takeTurns(contestants, at.depth());
            return contestants.stream().map(Contestant::figures).toList();
        } finally {
            contestants.forEach(Contestant::close);
        }
    }

    private void takeTurns(List<Contestant> contestants, int depth) {
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

    /** Room for what is measured and the warm-up. */
    private Map<String, String> size(BenchCase at) {
        long tokens = (long) at.batch() * (Contestant.ROOM + at.depth() + newTokens);
        Map<String, String> size = new HashMap<>();
        size.put("kv_cache_tokens", Long.toString(tokens));
        size.put("max_batch_size", Integer.toString(at.batch()));
        return size;
    }
}
