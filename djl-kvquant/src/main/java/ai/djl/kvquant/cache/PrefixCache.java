/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.ArrayDeque;
import java.util.Deque;
import java.util.List;

/**
 * Sequences of ended generations, kept so that a later prompt that begins alike is not computed
 * again; the least recently used one goes first when pages are needed. Uses the cache's lock.
 */
final class PrefixCache {

    /** Shorter common beginnings are not worth a copy of the tail page. */
    private static final int SHORTEST = 16;

    /** More sequences than this are not worth searching; the least recently used go. */
    private static final int MOST = 64;

    private final KvCache cache;
    private final Deque<CacheSequence> held = new ArrayDeque<>();

    PrefixCache(KvCache cache) {
        this.cache = cache;
    }

    void add(CacheSequence sequence) {
        synchronized (cache) {
            if (sequence.isClosed()) {
                return;
            }
            if (sequence.damaged) {
                sequence.close();
                return;
            }
            // What is a beginning of this one serves nobody any more.
            for (CacheSequence other : List.copyOf(held)) {
                if (sequence.tokens.commonPrefix(other.tokens()) == other.length()) {
                    held.remove(other);
                    other.close();
                }
            }
            held.addFirst(sequence);
            if (held.size() > MOST) {
                evictOldest();
            }
        }
    }

    CacheSequence fork(int[] prompt) {
        synchronized (cache) {
            CacheSequence best = null;
            int longest = 0;
            for (CacheSequence candidate : held) {
                int common = reusable(candidate, prompt);
                if (common > longest) {
                    best = candidate;
                    longest = common;
                }
            }
            if (longest < SHORTEST) {
                return cache.newSequence();
            }
            held.remove(best);
            held.addFirst(best);
            CacheSequence sequence = best.fork();
            sequence.truncate(longest);
            return sequence;
        }
    }

    /**
     * Tokens of a prompt that need not be computed: the common beginning, less the last token,
     * whose logits are wanted, and less the window before a cut whose exact copies are gone.
     */
    private int reusable(CacheSequence candidate, int[] prompt) {
        int common = Math.min(candidate.tokens.commonPrefix(prompt), prompt.length - 1);
        int dropped = candidate.length() - common;
        boolean windowKept =
                dropped <= cache.options().exact().rollback()
                        && candidate.exactFrom <= Math.max(0, common - cache.window());
        return windowKept ? common : Math.max(0, common - cache.window());
    }

    /** Frees the pages of the least recently used sequence; false if there is none. */
    boolean evictOldest() {
        CacheSequence oldest = held.pollLast();
        if (oldest == null) {
            return false;
        }
        oldest.close();
        return true;
    }
}
