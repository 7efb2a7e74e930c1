/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * How much of the stored keys a decoding step reads (landmarks.h of the operators): the pages that
 * promise most, those of the last 64 stored tokens, and the landmarks of the pages between which
 * was chosen.
 *
 * @param wanted stored tokens to choose, in whole pages; 0: all are read
 */
record KeySparsity(int wanted) {

    private static final int PAGE = KvCache.PAGE_TOKENS;

    /** Bits of a landmark's element, which stands for the 64 keys of its page. */
    static final int LANDMARK_BITS = 16;

    /** Full pages of which some are chosen; 0 if all are read. */
    private long candidates(long stored) {
        long pages = Math.max(0, stored - PAGE) / PAGE;
        return wanted == 0 || chosenPages() >= pages ? 0 : pages;
    }

    private long chosenPages() {
        return (wanted + PAGE - 1L) / PAGE;
    }

    /** Of so many tokens in pages, those that are read. */
    long tokensRead(long stored) {
        long pages = candidates(stored);
        return pages == 0 ? stored : stored - (pages - chosenPages()) * PAGE;
    }

    /** Bits of the landmarks that are read, per channel. */
    long landmarkBits(long stored) {
        return LANDMARK_BITS * candidates(stored);
    }
}
