/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.ndarray.NDManager;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What sequences take, all that is kept exactly included; pages are counted, not filled. */
class CacheBytesTest {

    private static final int EXACT_HEADER = 256;

    /** A layer as those of LLaMA-2 13B; all its layers take the same. */
    private static final CacheGeometry LAYER =
            new CacheGeometry(1, 40, 40, 128, 0.1, new double[64], 1 << 16);

    private static long bytes(String dtype, int tokens, Map<String, String> more) {
        Map<String, String> options = new HashMap<>(more);
        options.put("kv_cache_dtype", dtype);
        options.put("kv_cache_tokens", Integer.toString(tokens));
        options.put("max_batch_size", "1");
        CacheOptions sized = new CacheOptions(options).forSizes(LAYER);
        try (KvCache cache =
                        new KvCache(TinyCache.MANAGER, TinyCache.OPERATORS, LAYER, sized, 16, 0);
                NDManager scope = TinyCache.MANAGER.newSubManager();
                CacheSequence sequence = cache.newSequence()) {
            List<CacheSequence> one = List.of(sequence);
            CacheBatch.reserve(scope, cache, one, new int[] {tokens}, true);
            CacheBatch.commit(cache, one, List.of(new int[tokens]));
            return cache.bytes(one);
        }
    }

    @ParameterizedTest
    @CsvSource({
        "int2, 4096, 6.0",
        "int2, 4124, 6.0",
        "rotatekv2, 4096, 6.6",
        "int2, 32768, 7.3",
        "rotatekv2, 32768, 7.0"
    })
    void headlineCachesTakeSoMuchLess(String dtype, int tokens, double least) {
        double exact = LAYER.fp16BytesPerToken() * (double) tokens;
        double pages = bytes("auto", tokens, Map.of());
        long taken = bytes(dtype, tokens, Map.of());
        System.out.printf(
                "%s at %d: %d bytes a layer, %.3fx less than 16 bits, %.3fx than auto's pages%n",
                dtype, tokens, taken, exact / taken, pages / taken);
        assertTrue(exact / taken >= least, () -> exact / taken + " times less");
        assertTrue(pages / taken >= least, () -> pages / taken + " times less");
    }

    /** Sinks in a page, window and rollback slack in as many whole pages as they fill. */
    @Test
    void exactTokensTakeTheirPagesAndNoMore() {
        long exactPage = EXACT_HEADER + 2L * 2 * LAYER.channels() * KvCache.EXACT_TOKENS;
        long row = exactPage + Integer.BYTES;
        long all = bytes("int2", 4096, Map.of());
        Map<String, String> nothing = Map.of("kv_sink_tokens", "0", "kv_recent_tokens", "0");
        long none = bytes("int2", 4096, nothing);
        // Without a window, two more pages hold its 128 tokens.
        long page = none - bytes("int2", 4096 - KvCache.PAGE_TOKENS, nothing);
        assertEquals(none - 2 * page + (1 + (128 + 16) / 16) * row, all);
        assertEquals(all, bytes("int2", 4096, Map.of("kv_rollback_tokens", "1")));
        assertEquals(all + row, bytes("int2", 4096, Map.of("kv_rollback_tokens", "17")));
    }
}
