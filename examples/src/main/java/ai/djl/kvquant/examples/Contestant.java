/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.generate.CacheUsage;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;

/** One cache of a benchmark, with a batch of random prompts. */
final class Contestant implements AutoCloseable {

    private static final int WARM_UP_PROMPT = 64;
    private static final int WARM_UP_STEPS = 4;

    /** Tokens of a sequence besides those that are measured: the warm-up, and partly used pages. */
    static final int ROOM = 256;

    private final LlamaLanguageModel model;
    private final int batchSize;
    private final Random random = new Random(1);
    private DecodingBatch batch;
    private long prefillNanos;
    private long decodeNanos;
    private int prompt;
    private int steps;

    Contestant(LlamaLanguageModel model, int batchSize) {
        this.model = model;
        this.batchSize = batchSize;
    }

    void warmUp() {
        try (DecodingBatch warm = model.prefill(prompts(WARM_UP_PROMPT))) {
            for (int i = 0; i < WARM_UP_STEPS; ++i) {
                warm.step(tokens(batchSize));
            }
        }
    }

    /** A decoding step needs at least one token before it. */
    void prefill(int depth) {
        prompt = Math.max(1, depth);
        List<int[]> prompts = prompts(prompt);
        long start = System.nanoTime();
        batch = model.prefill(prompts);
        prefillNanos = System.nanoTime() - start;
    }

    void decode(int count) {
        int[] tokens = tokens(batchSize);
        long start = System.nanoTime();
        for (int i = 0; i < count; ++i) {
            batch.step(tokens);
        }
        decodeNanos += System.nanoTime() - start;
        steps += count;
    }

    private List<int[]> prompts(int length) {
        List<int[]> prompts = new ArrayList<>();
        for (int i = 0; i < batchSize; ++i) {
            prompts.add(tokens(length));
        }
        return prompts;
    }

    private int[] tokens(int count) {
        int[] tokens = new int[count];
        Arrays.setAll(tokens, i -> random.nextInt(model.vocabularySize()));
        return tokens;
    }

    Figures figures() {
        CacheUsage usage = batch.usage();
        return new Figures(
                usage.dtype(),
                1e9 * prompt * batchSize / prefillNanos,
                1e9 * steps * batchSize / decodeNanos,
                usage.bytes());
    }

    /**
     * What was measured, over all sequences of the batch together.
     *
     * @param dtype the kv_cache_dtype
     * @param prefillRate prompt tokens per second
     * @param decodeRate new tokens per second
     * @param bytes of the KV cache at the end
     */
    record Figures(String dtype, double prefillRate, double decodeRate, long bytes) {}

    @Override
    public void close() {
        if (batch != null) {
            batch.close();
        }
        model.close();
    }
}
