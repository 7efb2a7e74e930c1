/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/** Which sequence holds which pages; callers that change it hold the cache's lock. */
final class SequencePages {

    private final TokenLayout layout;
    private final long capacity;
    private final PagePool pagePool;
    private final PagePool exactPool;

    SequencePages(TokenLayout layout, CacheSize size) {
        this.layout = layout;
        capacity = size.tokens();
        pagePool = new PagePool(size.pages());
        exactPool = new PagePool(size.sequences() * layout.exactColumns());
    }

    /** Tokens that fit into the cache, over all sequences. */
    long capacity() {
        return capacity;
    }

    PagePool pagePool() {
        return pagePool;
    }

    PagePool exactPool() {
        return exactPool;
    }

    /** Refuses a prompt that no eviction makes room for. */
    void requireRoom(int tokens) {
        if (TokenLayout.pagesFor(layout.storedOfPrompt(tokens)) > pagePool.size()) {
            throw new CacheFullException(
                    "A prompt of "
                            + tokens
                            + " tokens does not fit into a KV cache of "
                            + capacity
                            + " tokens. Set kv_cache_tokens or kv_cache_memory higher, or shorten"
                            + " the prompt.");
        }
    }

    /** Lets a new sequence share the pages of another one, and what else it has. */
    void share(CacheSequence parent, CacheSequence child) {
        child.exactFrom = parent.exactFrom;
        child.truncated = parent.truncated;
        child.reach = parent.reach;
        child.own = parent.own;
        if (child.own != null) {
            child.own.retain();
        }
        for (int i = 0; i < child.pages.size(); ++i) {
            pagePool.retain(child.pages.get(i));
        }
        for (int i = 0; i < child.exactPages.size(); ++i) {
            exactPool.retain(child.exactPages.get(i));
        }
    }

    /** Drops the last tokens of a sequence, and the pages that only they were in. */
    void truncate(CacheSequence sequence, int length) {
        if (length == sequence.length()) {
            return;
        }
        if (layout.window() > 0) {
            int firstHeld = sequence.length() - layout.heldByRing();
            sequence.exactFrom = Math.min(length, Math.max(sequence.exactFrom, firstHeld));
        }
        sequence.truncated = true;
        sequence.reach = 0;
        sequence.tokens.truncate(length);
        releaseSurplus(sequence);
    }

    private void releaseSurplus(CacheSequence sequence) {
        int needed = TokenLayout.pagesFor(layout.stored(sequence, sequence.length()));
        while (sequence.pages.size() > needed) {
            pagePool.release(sequence.pages.get(sequence.pages.size() - 1));
            sequence.pages.truncate(sequence.pages.size() - 1);
        }
    }

    /**
     * Takes an append back that failed. The sequence is as it was, or is marked as damaged: where
     * the append has overwritten exact tokens that the window needs, the layers differ in what they
     * have stored of them.
     */
    void rollBack(CacheSequence sequence, int length) {
        int reach = Math.max(sequence.reach, sequence.length());
        int needed = Math.max(sequence.exactFrom, length - layout.window());
        if (layout.window() > 0 && needed < length) {
            int held = Math.min(length, layout.firstHeldAt(reach));
            sequence.damaged = held > needed;
            sequence.exactFrom = Math.max(sequence.exactFrom, held);
        }
        // Sinks may name tokens that are gone.
        sequence.truncated |= reach > length;
        sequence.reach = 0;
        sequence.tokens.truncate(length);
        releaseSurplus(sequence);
    }

    /** Gives back all that a sequence holds. */
    void release(CacheSequence sequence) {
        if (sequence.own != null) {
            sequence.own.release();
        }
        for (int i = 0; i < sequence.pages.size(); ++i) {
            pagePool.release(sequence.pages.get(i));
        }
        for (int i = 0; i < sequence.exactPages.size(); ++i) {
            exactPool.release(sequence.exactPages.get(i));
        }
        sequence.pages.truncate(0);
        sequence.exactPages.truncate(0);
    }
}
