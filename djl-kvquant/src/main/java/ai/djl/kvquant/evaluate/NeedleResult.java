/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.evaluate;

/**
 * How often a pass key was found under one KV cache.
 *
 * @param dtype the {@code kv_cache_dtype}
 * @param length tokens of prompt and answer, at most
 * @param depth where the key was hidden, from 0, the beginning, to 1, the end
 * @param trials how many prompts there were
 * @param hits how many were answered with the key, exactly
 */
public record NeedleResult(String dtype, int length, double depth, int trials, int hits) {}
