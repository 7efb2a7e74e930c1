/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import org.junit.jupiter.api.Test;

/** Which pages sequences hold; what is in them, the contract tests check. */
class CacheSequenceTest {

    private static final String[] PLAIN = {"kv_cache_dtype", "fp16", "kv_cache_tokens", "1024"};
    private static final String[] WINDOWED = {
        "kv_cache_dtype", "rotatekv4", "kv_cache_tokens", "1024", "kv_recent_tokens", "40",
        "kv_rollback_tokens", "8", "kv_sink_tokens", "4", "kv_group_size", "32"
    };

    @Test
    void pagesComeAsTokensDo() {
        try (TinyCache tiny = new TinyCache(PLAIN)) {
            CacheSequence sequence = tiny.sequence(TinyCache.tokens(1, 64));
            assertEquals(1, tiny.pagesUsed());
            tiny.append(sequence, 7);
            assertEquals(2, tiny.pagesUsed());
            assertEquals(65, sequence.length());
            sequence.close();
            assertEquals(0, tiny.pagesUsed());
            sequence.close();
            assertEquals(0, tiny.pagesUsed());
        }
    }

    @Test
    void aForkCopiesTheTailPageOnly() {
        try (TinyCache tiny = new TinyCache(PLAIN)) {
            CacheSequence parent = tiny.sequence(TinyCache.tokens(1, 200));
            CacheSequence child = parent.fork();
            assertEquals(4, tiny.pagesUsed());
            tiny.append(child, 1);
            assertEquals(5, tiny.pagesUsed());
            tiny.append(parent, 2);
            assertEquals(5, tiny.pagesUsed());
            parent.close();
            assertEquals(4, tiny.pagesUsed());
            child.close();
            assertEquals(0, tiny.pagesUsed());
        }
    }

    @Test
    void truncationGivesWholePagesBack() {
        try (TinyCache tiny = new TinyCache(PLAIN)) {
            CacheSequence sequence = tiny.sequence(TinyCache.tokens(1, 200));
            sequence.truncate(129);
            assertEquals(3, tiny.pagesUsed());
            sequence.truncate(128);
            assertEquals(2, tiny.pagesUsed());
            assertArrayEquals(TinyCache.tokens(1, 128), sequence.tokens());
            sequence.truncate(0);
            assertEquals(0, tiny.pagesUsed());
        }
    }

    @Test
    void tokensOfTheWindowTakeNoPages() {
        try (TinyCache tiny = new TinyCache(WINDOWED)) {
            CacheSequence sequence = tiny.sequence(TinyCache.tokens(1, 40));
            assertEquals(0, tiny.pagesUsed());
            // One page of sinks and three runs of 16 recent tokens.
            assertEquals(4, tiny.exactPagesUsed());
            tiny.append(sequence, 1);
            assertEquals(1, tiny.pagesUsed());
        }
    }

    @Test
    void theWindowIsExactAfterAShortRollbackOnly() {
        try (TinyCache tiny = new TinyCache(WINDOWED)) {
            CacheSequence sequence = tiny.sequence(TinyCache.tokens(1, 300));
            sequence.truncate(292);
            assertTrue(sequence.exactFrom <= 292 - 40);
            sequence.truncate(100);
            assertEquals(100, sequence.exactFrom);
            tiny.append(sequence, TinyCache.tokens(2, 100));
            sequence.truncate(192);
            assertTrue(sequence.exactFrom <= 192 - 40, () -> "exact from " + sequence.exactFrom);
        }
    }

    /** The ring holds 64 tokens, of which the window of 300 needs those from 260 on. */
    @Test
    void aFailedAppendIsTakenBack() {
        try (TinyCache tiny = new TinyCache(WINDOWED)) {
            CacheSequence sequence = tiny.sequence(TinyCache.tokens(1, 300));
            int pages = tiny.pagesUsed();
            tiny.fail(sequence, 24);
            assertEquals(300, sequence.length());
            assertEquals(pages, tiny.pagesUsed());
            // Of the tokens before the window, which a truncation would need, some are gone.
            assertEquals(260, sequence.exactFrom);
            tiny.append(sequence, TinyCache.tokens(2, 30));
            assertEquals(330, sequence.length());
        }
    }

    @Test
    void whatAFailedAppendHasOverwrittenIsNotReadAgain() {
        try (TinyCache tiny = new TinyCache(WINDOWED)) {
            CacheSequence sequence = tiny.sequence(TinyCache.tokens(1, 300));
            tiny.fail(sequence, 25);
            IllegalStateException e =
                    assertThrows(IllegalStateException.class, () -> tiny.append(sequence, 1));
            assertTrue(e.getMessage().endsWith("start a new one."), e::getMessage);
            assertThrows(IllegalStateException.class, sequence::fork);
            assertThrows(IllegalStateException.class, () -> sequence.truncate(10));
            tiny.cache.retire(sequence);
            assertEquals(0, tiny.pagesUsed());
            assertEquals(0, tiny.cache.sequenceFor(TinyCache.tokens(1, 300)).length());
        }
        try (TinyCache tiny = new TinyCache(PLAIN)) {
            // Pages of their own, which nothing was read from: nothing is lost.
            CacheSequence sequence = tiny.sequence(TinyCache.tokens(1, 300));
            int pages = tiny.pagesUsed();
            tiny.fail(sequence, 300);
            assertEquals(pages, tiny.pagesUsed());
            tiny.append(sequence, 1);
        }
    }

    /** Also of several sequences at once. */
    @Test
    void roomForAllPartsOrNone() {
        try (TinyCache tiny = new TinyCache(PLAIN)) {
            CacheSequence first = tiny.sequence(TinyCache.tokens(1, 300));
            CacheSequence second = tiny.sequence(TinyCache.tokens(2, 300));
            List<CacheSequence> both = List.of(first, second);
            int pages = tiny.pagesUsed();
            int[] counts = {200, 2000};
            assertThrows(
                    CacheFullException.class,
                    () -> CacheBatch.requireRoom(tiny.cache, both, counts, true));
            CacheBatch.rollBack(tiny.cache, both, new int[] {300, 300});
            assertEquals(pages, tiny.pagesUsed());
            tiny.append(first, 1);
            tiny.append(second, 1);
        }
    }

    @Test
    void impossibleUsesAreRefused() {
        try (TinyCache tiny = new TinyCache(PLAIN)) {
            CacheSequence sequence = tiny.sequence(TinyCache.tokens(1, 10));
            IllegalArgumentException e =
                    assertThrows(IllegalArgumentException.class, () -> sequence.truncate(11));
            assertEquals(
                    "truncate(11): the sequence has 10 tokens; allowed: 0 to 10.", e.getMessage());
            sequence.close();
            assertThrows(IllegalStateException.class, sequence::fork);
            assertThrows(IllegalStateException.class, () -> tiny.append(sequence, 1));
        }
    }

    @Test
    void aFullCacheSaysWhatFits() {
        try (TinyCache tiny =
                new TinyCache(
                        "kv_cache_dtype",
                        "fp16",
                        "kv_cache_tokens",
                        "128",
                        "max_batch_size",
                        "1")) {
            CacheSequence first = tiny.sequence(TinyCache.tokens(1, 128));
            CacheSequence second = tiny.cache.newSequence();
            CacheFullException e =
                    assertThrows(
                            CacheFullException.class,
                            () -> tiny.append(second, TinyCache.tokens(2, 100)));
            assertTrue(
                    e.getMessage()
                            .startsWith(
                                    "The KV cache is full: all 3 pages of 64 tokens are in use (room"
                                            + " for 128 tokens, and a page for each of"
                                            + " max_batch_size 1), and a sequence of 0 tokens needs"
                                            + " 100 more."),
                    e::getMessage);
            assertEquals(128, first.length());
            first.close();
            tiny.append(second, TinyCache.tokens(2, 100));
            assertEquals(100, second.length());
        }
    }

    @Test
    void exactTokensComeOnTopOfPages() {
        try (TinyCache tiny =
                new TinyCache(
                        "kv_cache_dtype",
                        "rotatekv4",
                        "kv_sink_tokens",
                        "4",
                        "kv_recent_tokens",
                        "128",
                        "kv_cache_tokens",
                        "64",
                        "max_batch_size",
                        "1")) {
            CacheSequence sequence = tiny.sequence(TinyCache.tokens(1, 128 + 2 * 64));
            CacheFullException e =
                    assertThrows(
                            CacheFullException.class,
                            () -> tiny.append(sequence, TinyCache.tokens(2, 1)));
            assertTrue(
                    e.getMessage()
                            .startsWith(
                                    "The KV cache is full: all 2 pages of 64 tokens are in use (room"
                                            + " for 64 tokens, and a page for each of max_batch_size"
                                            + " 1; exact tokens lie elsewhere), and a sequence of"
                                            + " 256 tokens needs 1 more."),
                    e::getMessage);
        }
    }

    @Test
    void aCacheWithoutRoomTellsForWhomExactTokensAre() {
        assertEquals(
                "The KV cache has no room for a page: 64 tokens take 100 bytes, and the exact tokens"
                        + " of 16 sequences (for max_batch_size 4 and for beginnings of prompts that"
                        + " are kept) 1600. Set kv_cache_memory higher, or max_batch_size or"
                        + " kv_recent_tokens lower.",
                assertThrows(
                                IllegalArgumentException.class,
                                () ->
                                        new CacheSize(
                                                new CacheGeometry(
                                                        1, 2, 1, 32, 0.2, new double[16], 4096),
                                                new SizeOptions(4, 0, 1000),
                                                new MemoryBudget("machine", 1, 1 << 20, true),
                                                100,
                                                100))
                        .getMessage());
    }
}
