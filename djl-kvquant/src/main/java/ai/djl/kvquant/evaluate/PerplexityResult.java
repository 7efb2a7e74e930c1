/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.evaluate;

/**
 * The perplexity of a text under one KV cache.
 *
 * @param dtype the {@code kv_cache_dtype}
 * @param perplexity the exponential of the mean negative log-likelihood of the predicted tokens
 * @param windows how many windows of the text were evaluated
 * @param tokens how many tokens were predicted: all of each window but its first
 * @param bitsPerKey the bits per key element, scales and zeros included, sinks and recent window
 *     not
 * @param bitsPerValue the bits per value element, likewise
 * @param storedBitsPerKey the bits per key element with all that a window stores, sinks and recent
 *     window included
 * @param storedBitsPerValue the bits per value element, likewise
 * @param meanKl the mean Kullback-Leibler divergence of the predictions with the cache {@code auto}
 *     from these, in nats
 * @param top1Agreement the share of tokens, 0 to 1, whose most probable prediction is the same as
 *     with {@code auto}
 */
public record PerplexityResult(
        String dtype,
        double perplexity,
        int windows,
        long tokens,
        double bitsPerKey,
        double bitsPerValue,
        double storedBitsPerKey,
        double storedBitsPerValue,
        double meanKl,
        double top1Agreement) {}
