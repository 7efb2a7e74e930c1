/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Arrays;

/** Page numbers of one pool with their reference counts; callers hold the cache's lock. */
final class PagePool {

    private final int[] references;
    private final int[] free;
    private int numFree;

    PagePool(int pages) {
        references = new int[pages];
        free = new int[pages];
        // The lowest page goes first, so that a pool that is never full never touches its end.
        for (int i = 0; i < pages; ++i) {
            free[i] = pages - 1 - i;
        }
        numFree = pages;
    }

    /** Returns a page that has one reference, or -1 if none is free. */
    int allocate() {
        if (numFree == 0) {
            return -1;
        }
        int page = free[--numFree];
        references[page] = 1;
        return page;
    }

    void retain(int page) {
        checkUsed(page);
        ++references[page];
    }

    void release(int page) {
        checkUsed(page);
        if (--references[page] == 0) {
            free[numFree++] = page;
        }
    }

    private void checkUsed(int page) {
        if (references[page] < 1) {
            throw new IllegalStateException("Page " + page + " is not in use");
        }
    }

    boolean isShared(int page) {
        return references[page] > 1;
    }

    int size() {
        return references.length;
    }

    int used() {
        return references.length - numFree;
    }

    @Override
    public String toString() {
        return used() + " of " + size() + " pages, references " + Arrays.toString(references);
    }
}
