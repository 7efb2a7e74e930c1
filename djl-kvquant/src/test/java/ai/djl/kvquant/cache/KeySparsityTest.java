/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class KeySparsityTest {

    @ParameterizedTest
    @CsvSource({
        // wanted, stored; read, landmark bits per channel
        "0, 1000, 1000, 0",
        "64, 0, 0, 0",
        "64, 191, 191, 0",
        "64, 192, 128, 32",
        "64, 256, 128, 48",
        "64, 257, 129, 48",
        "1, 257, 129, 48",
        "65, 257, 193, 48",
        "129, 257, 257, 0",
        "2048, 65536, 2112, 16368"
    })
    void pagesAreChosenAmongThoseBehindTheRecent(int wanted, int stored, int read, int landmarks) {
        KeySparsity sparsity = new KeySparsity(wanted);
        assertEquals(read, sparsity.tokensRead(stored));
        assertEquals(landmarks, sparsity.landmarkBits(stored));
    }

    /** 16 / 1.25 x 32 = 410, had it no landmarks and no recent tokens. */
    @Test
    void thePapersFactorIsThatOfTheChosenCodesAlone() {
        int tokens = 1 << 16;
        KeySparsity sparsity = new KeySparsity(tokens / 32);
        double bits = SvdqSchedule.of(1.25).bits();
        assertEquals(409.6, 16 / (bits * sparsity.wanted() / tokens), 1e-9);
        double codes = bits * sparsity.tokensRead(tokens) / tokens;
        double landmarks = (double) sparsity.landmarkBits(tokens) / tokens;
        assertEquals(397, 16 / codes, 1);
        assertEquals(0.25, landmarks, 1e-3);
        assertEquals(55, 16 / (codes + landmarks), 1);
    }

    @Test
    void aCacheTellsWhatAStepReads() {
        int tokens = 4000;
        String[] names = {"kv_cache_dtype", "rotatekv4", "kv_sink_tokens", "4"};
        try (TinyCache dense = new TinyCache(names);
                TinyCache sparse =
                        new TinyCache(
                                names[0],
                                names[1],
                                names[2],
                                names[3],
                                "kv_sparse_tokens",
                                "128")) {
            KeyReads all = dense.cache.keyReads(tokens);
            KeyReads some = sparse.cache.keyReads(tokens);
            double bits = dense.cache.bitsPerKey();
            assertEquals(bits, all.codes(), 1e-9);
            assertEquals(0, all.landmarks());
            assertEquals(64.0 / tokens, all.exact(), 1e-9);
            assertEquals(bits + 0.25, sparse.cache.bitsPerKey(), 1e-9);
            // 61 full pages behind the last 64 tokens, 2 of them chosen.
            assertEquals(bits * (tokens - 59 * 64) / tokens, some.codes(), 1e-9);
            assertEquals(61 * 16.0 / tokens, some.landmarks(), 1e-9);
            assertEquals(all.exact(), some.exact());
            assertTrue(some.total() < all.total() / 5);
            // Landmarks of 32 channels in bfloat16, in whole cache lines.
            assertEquals(64, (sparse.cache.bytesPerToken() - dense.cache.bytesPerToken()) * 64);
        }
    }

    @Test
    void sparsityIsForQuantizedKeysAndNotForEvaluation() {
        Map<String, String> plain = Map.of("kv_cache_dtype", "fp16", "kv_sparse_tokens", "64");
        Exception e = assertThrows(IllegalArgumentException.class, () -> new CacheOptions(plain));
        assertTrue(e.getMessage().contains("only when keys are quantized"), e.getMessage());
        Map<String, String> none = Map.of("kv_cache_dtype", "int2", "kv_sparse_tokens", "0");
        assertThrows(IllegalArgumentException.class, () -> new CacheOptions(none));
        Map<String, String> some = Map.of("kv_cache_dtype", "int2", "kv_sparse_tokens", "64");
        assertEquals(64, new CacheOptions(some).sparseTokens());
        assertEquals(0, new CacheOptions(some).forEvaluation(100).sparseTokens());
    }
}
