/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.llama.LlamaModel;
import java.util.function.IntPredicate;

/** How much of a kind of cache fits into kv_cache_memory, or what a cache takes by default. */
final class BenchSizes {

    private static final int MAX_BATCH = 4096;

    private BenchSizes() {}

    /**
     * Replaces max by a number.
     *
     * @param options the cache, complete
     * @param room tokens of each sequence besides its depth
     */
    static BenchCase resolve(BenchCase wanted, LlamaModel model, CacheOptions options, int room) {
        if (!wanted.hasMax()) {
            return wanted;
        }
        long budget = options.memory() > 0 ? options.memory() : model.cacheBudget();
        try (LlamaLanguageModel small = model.withCache(options.forOneSequence(1))) {
            if (wanted.batch() == BenchCase.MAX) {
                int tokens = wanted.depth() + room;
                int batch = largest(MAX_BATCH, b -> small.cache().bytesFor(b, tokens) <= budget);
                return new BenchCase(wanted.depth(), batch);
            }
            int longest = model.geometry().maxTokens() - room;
            int batch = wanted.batch();
            int depth = largest(longest, d -> small.cache().bytesFor(batch, d + room) <= budget);
            return new BenchCase(depth, batch);
        }
    }

    private static int largest(int limit, IntPredicate fits) {
        if (!fits.test(1)) {
            throw new IllegalArgumentException(
                    "Not even one fits into the memory that is free; use a smaller model or"
                            + " another kv_cache_dtype.");
        }
        int low = 1;
        int high = limit;
        while (low < high) {
            int middle = low + (high - low + 1) / 2;
            if (fits.test(middle)) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        return low;
    }
}
