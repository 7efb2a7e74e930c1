/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Locale;

/**
 * Gives sequences pages of their own for what an append will write: new ones, and copies of those
 * that are shared. The copies are made on close, also when the cache is full: tables that name them
 * must find them filled. Callers hold the cache's lock.
 */
final class PageReservation implements AutoCloseable {

    private final KvCache cache;
    private final TokenLayout layout;
    private final PagePool pagePool;
    private final PagePool exactPool;
    private final boolean prefill;
    private final IntArray pageSources = new IntArray();
    private final IntArray pageTargets = new IntArray();
    private final IntArray exactSources = new IntArray();
    private final IntArray exactTargets = new IntArray();

    PageReservation(KvCache cache, boolean prefill) {
        this.cache = cache;
        layout = cache.layout();
        pagePool = cache.sequencePages().pagePool();
        exactPool = cache.sequencePages().exactPool();
        this.prefill = prefill;
    }

    void reserve(CacheSequence sequence, int count) {
        reservePages(sequence, count);
        reserveExact(sequence, count);
    }

    private void reservePages(CacheSequence sequence, int count) {
        int begin = layout.stored(sequence, sequence.length());
        int end = end(sequence, count);
        while (sequence.pages.size() < TokenLayout.pagesFor(end)) {
            sequence.pages.add(allocate(pagePool, sequence, count));
        }
        for (int i = begin / KvCache.PAGE_TOKENS;
                i < TokenLayout.pagesFor(end) && begin < end;
                ++i) {
            own(pagePool, sequence.pages, i, sequence, count);
        }
    }

    private void reserveExact(CacheSequence sequence, int count) {
        int length = sequence.length();
        int sinkPages = layout.sinkPages();
        int ring = layout.ring();
        int runs = (length + count + KvCache.EXACT_TOKENS - 1) / KvCache.EXACT_TOKENS;
        while (sequence.exactPages.size() < sinkPages + Math.min(ring, runs)) {
            sequence.exactPages.add(allocate(exactPool, sequence, count));
        }
        boolean sinksChange =
                prefill || sequence.truncated || length < cache.options().exact().maxSinks();
        for (int i = 0; i < sinkPages && sinksChange; ++i) {
            own(exactPool, sequence.exactPages, i, sequence, count);
        }
        int firstRun = Math.max(length / KvCache.EXACT_TOKENS, runs - ring);
        for (int run = firstRun; run < runs && ring > 0; ++run) {
            own(exactPool, sequence.exactPages, sinkPages + run % ring, sequence, count);
        }
    }

    /** Replaces a shared page by a copy; making room for it may end the sharing instead. */
    private void own(PagePool pool, IntArray table, int column, CacheSequence sequence, int count) {
        int page = table.get(column);
        int copy = -1;
        while (pool.isShared(page) && (copy = pool.allocate()) < 0) {
            if (!cache.prefixes().evictOldest()) {
                throw full(pool, sequence, count);
            }
        }
        if (copy < 0) {
            return;
        }
        boolean exact = pool == exactPool;
        (exact ? exactSources : pageSources).add(page);
        (exact ? exactTargets : pageTargets).add(copy);
        pool.release(page);
        table.set(column, copy);
    }

    private int allocate(PagePool pool, CacheSequence sequence, int count) {
        int page = pool.allocate();
        while (page < 0 && cache.prefixes().evictOldest()) {
            page = pool.allocate();
        }
        if (page < 0) {
            throw full(pool, sequence, count);
        }
        return page;
    }

    private CacheFullException full(PagePool pool, CacheSequence sequence, int count) {
        boolean exact = pool == exactPool;
        String what =
                exact
                        ? "all exact pages, enough for "
                                + pool.size() / layout.exactColumns()
                                + " sequences, are in use"
                        : "all "
                                + pool.size()
                                + " pages of "
                                + KvCache.PAGE_TOKENS
                                + " tokens are in use (room for "
                                + cache.capacity()
                                + " tokens, and a page for each of max_batch_size "
                                + cache.options().maxBatchSize()
                                + (layout.exactColumns() > 0
                                        ? "; exact tokens lie elsewhere)"
                                        : ")");
        return new CacheFullException(
                String.format(
                        Locale.ROOT,
                        "The KV cache is full: %s, and a sequence of %d tokens needs %d more. A token"
                                + " takes %.1f KiB; set kv_cache_tokens or kv_cache_memory higher,%s or"
                                + " close batches that are not used.",
                        what,
                        sequence.length(),
                        count,
                        cache.bytesPerToken() / 1024,
                        exact ? " or max_batch_size," : ""),
                exact || TokenLayout.pagesFor(end(sequence, count)) <= pool.size());
    }

    /** Tokens that are stored in pages behind an append. */
    private int end(CacheSequence sequence, int count) {
        return layout.stored(sequence, sequence.length() + count);
    }

    @Override
    public void close() {
        cache.tensors().copyPages(false, pageSources, pageTargets);
        cache.tensors().copyPages(true, exactSources, exactTargets);
    }
}
