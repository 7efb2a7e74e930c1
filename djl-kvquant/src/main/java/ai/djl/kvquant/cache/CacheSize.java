/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/** How many tokens, pages and sequences a cache is made for. */
final class CacheSize {

    /** Sequences with exact pages: those being decoded, and as many prefixes that are kept. */
    private static final int SEQUENCES_PER_BATCH_ROW = 4;

    /** The same where memory is taken at once: so many prefixes at most. */
    private static final int FEW_PREFIXES = 4;

    private final long tokens;
    private final int pages;
    private final int sequences;
    private final long bytes;

    CacheSize(
            CacheGeometry geometry,
            SizeOptions options,
            MemoryBudget memory,
            long pageBytes,
            long exactBytes) {
        int rows = options.maxBatchSize();
        sequences =
                memory.bounded()
                        ? SEQUENCES_PER_BATCH_ROW * rows
                        : rows + Math.min(rows, FEW_PREFIXES);
        long exactTotal = sequences * exactBytes;
        long wanted = (long) geometry.maxTokens() * options.maxBatchSize();
        if (options.tokens() > 0) {
            tokens = options.tokens();
        } else if (options.bytes() > 0) {
            tokens = tokensIn(options.bytes() - exactTotal, pageBytes);
        } else {
            long fitting = tokensIn(memory.defaultBytes() - exactTotal, pageBytes);
            tokens = memory.bounded() ? Math.min(wanted, fitting) : fitting;
        }
        // Every sequence may leave its last page partly empty.
        long count = (tokens + KvCache.PAGE_TOKENS - 1) / KvCache.PAGE_TOKENS;
        count += options.maxBatchSize();
        if (tokens < Math.min(KvCache.PAGE_TOKENS, wanted) && options.tokens() == 0) {
            throw new IllegalArgumentException(
                    "The KV cache has no room for a page: "
                            + KvCache.PAGE_TOKENS
                            + " tokens take "
                            + pageBytes
                            + " bytes, and the exact tokens of "
                            + sequences
                            + " sequences (for max_batch_size "
                            + rows
                            + " and for beginnings of prompts that are kept) "
                            + exactTotal
                            + ". Set kv_cache_memory higher, or max_batch_size or"
                            + " kv_recent_tokens lower.");
        }
        bytes = count * pageBytes + exactTotal;
        if (bytes > memory.totalBytes()) {
            throw new IllegalArgumentException(
                    "A KV cache of "
                            + tokens
                            + " tokens takes "
                            + bytes / (1 << 20)
                            + " MiB, more than the "
                            + memory.owner()
                            + "'s "
                            + memory.totalBytes() / (1 << 20)
                            + " MiB. Set kv_cache_tokens or kv_cache_memory lower (or max_batch_size or"
                            + " kv_recent_tokens), or choose a kv_cache_dtype with fewer bits.");
        }
        pages = Math.toIntExact(count);
    }

    private static long tokensIn(long bytes, long pageBytes) {
        return Math.max(0, bytes) / pageBytes * KvCache.PAGE_TOKENS;
    }

    long tokens() {
        return tokens;
    }

    int pages() {
        return pages;
    }

    int sequences() {
        return sequences;
    }

    /** Of all pages and exact pages. */
    long bytes() {
        return bytes;
    }
}
