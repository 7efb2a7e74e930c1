/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * One sequence in the cache: its tokens and the pages that hold their keys and values.
 *
 * <p>Pages may be shared with other sequences; whoever appends to a shared page gets a copy first.
 * A sequence belongs to one thread at a time; its cache may be used by many.
 */
public final class CacheSequence implements AutoCloseable {

    private final KvCache cache;
    final IntArray tokens;
    final IntArray pages;
    final IntArray exactPages;

    /** Tokens from the start that have no exact copy any more, because of a truncation. */
    int exactFrom;

    /**
     * Set by a truncation: sinks may name tokens that are gone, so their pages must be owned at the
     * next append.
     */
    boolean truncated;

    /** Tokens that an append may have written, whether or not it was committed. */
    int reach;

    /** Set when an append has failed that overwrote what it can not give back. */
    boolean damaged;

    /** Parameters of its own; null if the cache's serve it. */
    SequenceParams own;

    private boolean closed;

    CacheSequence(KvCache cache) {
        this(cache, new IntArray(), new IntArray(), new IntArray());
    }

    CacheSequence(KvCache cache, IntArray tokens, IntArray pages, IntArray exactPages) {
        this.cache = cache;
        this.tokens = tokens;
        this.pages = pages;
        this.exactPages = exactPages;
    }

    /**
     * Returns the number of tokens.
     *
     * @return the number of tokens
     */
    public int length() {
        return tokens.size();
    }

    /**
     * Returns the token ids.
     *
     * @return a copy
     */
    public int[] tokens() {
        return tokens.toArray();
    }

    /**
     * Returns a sequence with the same tokens that shares every page with this one.
     *
     * @return the new sequence; the caller closes it
     */
    public CacheSequence fork() {
        return cache.fork(this);
    }

    /**
     * Drops the last tokens. What stays is read as it is stored: tokens that had left the window
     * stay quantized, unless they are within the rollback slack.
     *
     * @param length the new length, 0 to the present one
     */
    public void truncate(int length) {
        if (length < 0 || length > length()) {
            throw new IllegalArgumentException(
                    "truncate("
                            + length
                            + "): the sequence has "
                            + length()
                            + " tokens; allowed: 0 to "
                            + length()
                            + ".");
        }
        cache.truncate(this, length);
    }

    void checkOpen() {
        if (damaged) {
            throw new IllegalStateException(
                    "An append to the sequence failed after it had overwritten some of its recent"
                            + " tokens; start a new one.");
        }
        if (closed) {
            throw new IllegalStateException(
                    "The sequence is closed; keep it open while it is used, or start a new one.");
        }
    }

    boolean isClosed() {
        return closed;
    }

    void markClosed() {
        closed = true;
    }

    /** Releases the pages; further calls do nothing. */
    @Override
    public void close() {
        cache.release(this);
    }
}
