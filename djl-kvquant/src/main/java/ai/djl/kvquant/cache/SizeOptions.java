/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * For how much a cache has room.
 *
 * @param maxBatchSize max_batch_size, the sequences that the default size allows for
 * @param tokens kv_cache_tokens; 0: not set
 * @param bytes kv_cache_memory; 0: not set
 */
record SizeOptions(int maxBatchSize, long tokens, long bytes) {

    static final String BATCH = "max_batch_size";
    static final String TOKENS = "kv_cache_tokens";
    static final String MEMORY = "kv_cache_memory";

    private static final int DEFAULT_BATCH = 4;

    /**
     * Reads the options.
     *
     * @throws IllegalArgumentException if one has an impossible value or contradicts another
     */
    static SizeOptions of(OptionValues values) {
        int batch = values.integer(BATCH, DEFAULT_BATCH, 1, 1 << 16);
        if (values.has(TOKENS) && values.has(MEMORY)) {
            throw new IllegalArgumentException(
                    TOKENS + " and " + MEMORY + " are both set; set one of them.");
        }
        return new SizeOptions(
                batch,
                values.has(TOKENS) ? values.integer(TOKENS, 0, 1, 1 << 30) : 0,
                values.bytes(MEMORY));
    }
}
