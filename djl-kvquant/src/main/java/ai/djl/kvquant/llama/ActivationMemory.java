/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.torch.Operators;
import java.util.List;
import java.util.Map;

/** How much of a GPU's memory computing takes besides weights and caches. */
final class ActivationMemory {

    private ActivationMemory() {}

    /** Runs a chunk of a prompt, and another one over it as its past. */
    static long measure(LlamaModel model) {
        Operators operators = model.operators();
        int tokens = Math.min(2 * model.chunkTokens(), model.geometry().maxTokens());
        Map<String, String> options =
                Map.of(
                        "kv_cache_dtype", "fp16",
                        "kv_cache_tokens", Integer.toString(tokens),
                        "max_batch_size", "1");
        operators.releaseCachedMemory();
        long bytes;
        try (LlamaLanguageModel language = model.withCache(new CacheOptions(options))) {
            long before = operators.gpu().freeBytes();
            try (DecodingBatch batch = language.prefill(List.of(new int[tokens]))) {
                batch.logits().toFloatArray();
            }
            bytes = before - operators.gpu().freeBytes();
        }
        operators.releaseCachedMemory();
        return Math.max(0, bytes);
    }
}
