/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.List;

/**
 * Where the tokens of a sequence lie: in pages, and exactly in sink pages and in a ring of recent
 * ones.
 */
final class TokenLayout {

    private final int window;
    private final int smallestWindow;
    private final int sinkPages;
    private final int ring;

    TokenLayout(List<LayerFormat> layers, int rollback) {
        window = layers.stream().mapToInt(LayerFormat::window).max().orElse(0);
        smallestWindow = layers.stream().mapToInt(LayerFormat::window).min().orElse(0);
        sinkPages = layers.stream().mapToInt(LayerFormat::sinkPages).max().orElse(0);
        ring = window == 0 ? 0 : ringPages(window, rollback);
    }

    /**
     * A token takes the place of the one that is as many tokens before it as the ring holds: no
     * more places than the window and the rollback slack have tokens, but for whole pages. The
     * operators ask for a page more than a window fills, which may begin and end within a page.
     */
    private static int ringPages(int window, int rollback) {
        int smallest = ceilDivide(window, KvCache.EXACT_TOKENS) + 1;
        return Math.max(smallest, ceilDivide(window + rollback, KvCache.EXACT_TOKENS));
    }

    /** Pages that so many tokens take. */
    static int pagesFor(int tokens) {
        return ceilDivide(tokens, KvCache.PAGE_TOKENS);
    }

    private static int ceilDivide(int dividend, int divisor) {
        return (dividend + divisor - 1) / divisor;
    }

    /** Recent tokens that are read exactly, in the layer that reads most. */
    int window() {
        return window;
    }

    /** Exact pages of a sequence: sink pages, then the ring of window pages. */
    int exactColumns() {
        return sinkPages + ring;
    }

    int sinkPages() {
        return sinkPages;
    }

    int ring() {
        return ring;
    }

    /** Tokens before the end of a sequence that the ring holds. */
    int heldByRing() {
        return ring * KvCache.EXACT_TOKENS;
    }

    /** The first of the tokens that the ring holds once so many are written. */
    int firstHeldAt(int reach) {
        return Math.max(0, reach - heldByRing());
    }

    /** Tokens of a prompt that are stored in pages, in the layer that stores most. */
    int storedOfPrompt(int tokens) {
        return tokens - smallestWindow;
    }

    /**
     * Tokens of a sequence that are stored in pages once it has the given length, in the layer that
     * stores most.
     */
    int stored(CacheSequence sequence, int length) {
        return stored(sequence, length, smallestWindow);
    }

    /** Tokens of a sequence that are read from pages in a layer with the largest window. */
    int storedBehindWindow(CacheSequence sequence) {
        return stored(sequence, sequence.length(), window);
    }

    private static int stored(CacheSequence sequence, int length, int window) {
        return window == 0
                ? length
                : Math.max(0, Math.max(length - window, Math.min(sequence.exactFrom, length)));
    }
}
