/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Arrays;
import org.junit.jupiter.api.Test;

class PrefixCacheTest {

    private static int[] concat(int[] a, int[] b) {
        int[] all = Arrays.copyOf(a, a.length + b.length);
        System.arraycopy(b, 0, all, a.length, b.length);
        return all;
    }

    @Test
    void theLongestCommonBeginningIsForked() {
        try (TinyCache tiny = new TinyCache("kv_cache_dtype", "fp16", "kv_cache_tokens", "2048")) {
            int[] system = TinyCache.tokens(1, 100);
            tiny.cache.retire(tiny.sequence(concat(system, TinyCache.tokens(2, 50))));
            tiny.cache.retire(tiny.sequence(concat(system, TinyCache.tokens(3, 50))));
            int[] prompt = concat(concat(system, TinyCache.tokens(2, 30)), TinyCache.tokens(4, 9));
            assertEquals(130, tiny.cache.sequenceFor(prompt).length());
            assertEquals(0, tiny.cache.sequenceFor(TinyCache.tokens(5, 40)).length());
        }
    }

    @Test
    void thePromptsLastTokenIsLeftToBeComputed() {
        try (TinyCache tiny = new TinyCache("kv_cache_dtype", "fp16", "kv_cache_tokens", "2048")) {
            int[] prompt = TinyCache.tokens(1, 100);
            tiny.cache.retire(tiny.sequence(prompt));
            assertEquals(99, tiny.cache.sequenceFor(prompt).length());
        }
    }

    @Test
    void shortBeginningsAreNotWorthIt() {
        try (TinyCache tiny = new TinyCache("kv_cache_dtype", "fp16", "kv_cache_tokens", "2048")) {
            int[] shared = TinyCache.tokens(1, 15);
            tiny.cache.retire(tiny.sequence(concat(shared, TinyCache.tokens(2, 50))));
            assertEquals(
                    0, tiny.cache.sequenceFor(concat(shared, TinyCache.tokens(3, 5))).length());
        }
    }

    @Test
    void theWindowBeforeACutIsComputedAgain() {
        try (TinyCache tiny =
                new TinyCache(
                        "kv_cache_dtype",
                        "rotatekv2",
                        "kv_cache_tokens",
                        "2048",
                        "kv_group_size",
                        "32",
                        "kv_recent_tokens",
                        "48",
                        "kv_rollback_tokens",
                        "16")) {
            int[] shared = TinyCache.tokens(1, 200);
            tiny.cache.retire(tiny.sequence(concat(shared, TinyCache.tokens(2, 100))));
            int[] far = concat(shared, TinyCache.tokens(3, 10));
            assertEquals(200 - 48, tiny.cache.sequenceFor(far).length());
            int[] near = concat(concat(shared, TinyCache.tokens(2, 90)), TinyCache.tokens(4, 9));
            assertEquals(290, tiny.cache.sequenceFor(near).length());
        }
    }

    @Test
    void theOldestGoesWhenPagesAreNeeded() {
        try (TinyCache tiny =
                new TinyCache(
                        "kv_cache_dtype",
                        "fp16",
                        "kv_cache_tokens",
                        "256",
                        "max_batch_size",
                        "1")) {
            tiny.cache.retire(tiny.sequence(TinyCache.tokens(1, 128)));
            tiny.cache.retire(tiny.sequence(TinyCache.tokens(2, 128)));
            tiny.sequence(TinyCache.tokens(3, 128));
            assertEquals(0, tiny.cache.sequenceFor(TinyCache.tokens(1, 128)).length());
            assertEquals(127, tiny.cache.sequenceFor(TinyCache.tokens(2, 128)).length());
        }
    }
}
