/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.generate.CacheUsage;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.ndarray.NDArray;
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

    /** Random keys and values instead of those of prompts. */
    void fill(int depth) {
        prompt = Math.max(1, depth);
        batch = model.randomBatch(batchSize, prompt);
        decode(WARM_UP_STEPS);
        decodeNanos = 0;
        steps = 0;
    }

    void decode(int count) {
        int[] tokens = tokens(batchSize);
        long start = System.nanoTime();
        for (int i = 0; i < count; ++i) {
            batch.step(tokens);
            if (model.model().device().isGpu()) {
                // Whoever generates needs to know the next tokens: a GPU is waited for.
                tokens = best();
            }
        }
        decodeNanos += System.nanoTime() - start;
        steps += count;
    }

    private int[] best() {
        try (NDArray best = batch.logits().argMax(1)) {
            return Arrays.stream(best.toLongArray()).mapToInt(Math::toIntExact).toArray();
        }
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
                new BenchCase(prompt, batchSize),
                prefillNanos == 0 ? 0 : 1e9 * prompt * batchSize / prefillNanos,
                1e9 * steps * batchSize / decodeNanos,
                usage.bytes(),
                model.model().gpuBytesUsed(),
                null);
    }

    /**
     * What was measured, over all sequences of the batch together.
     *
     * @param dtype the kv_cache_dtype
     * @param at depth and batch
     * @param prefillRate prompt tokens per second; 0: there were no prompts
     * @param decodeRate new tokens per second
     * @param bytes of the KV cache at the end
     * @param deviceBytes taken of a GPU, by weights and computing, too; 0 on a CPU
     * @param error why nothing was measured; null if something was
     */
    record Figures(
            String dtype,
            BenchCase at,
            double prefillRate,
            double decodeRate,
            long bytes,
            long deviceBytes,
            String error) {

        static Figures failed(String dtype, BenchCase at, String error) {
            return new Figures(dtype, at, 0, 0, 0, 0, error);
        }
    }

    @Override
    public void close() {
        if (batch != null) {
            batch.close();
        }
        model.close();
    }
}
