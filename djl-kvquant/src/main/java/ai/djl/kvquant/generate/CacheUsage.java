/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

/**
 * What the KV cache of a batch takes.
 *
 * @param bytes the bytes in use, with scales, sink tokens and the recent window
 * @param fp16Bytes the bytes that the same tokens would take at 16 bits per element
 * @param bitsPerKey the effective bits per element of the keys
 * @param bitsPerValue the effective bits per element of the values
 * @param keyBitsRead the bits of keys that the next step reads, per element of all keys; with
 *     {@code kv_sparse_tokens} fewer than are stored, landmarks included
 * @param dtype the {@code kv_cache_dtype} in use
 */
public record CacheUsage(
        long bytes,
        long fp16Bytes,
        double bitsPerKey,
        double bitsPerValue,
        double keyBitsRead,
        String dtype) {}
