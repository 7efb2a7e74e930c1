/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import ai.djl.engine.Engine;
import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** A cache of one small layer whose pages are reserved and counted but never filled. */
final class TinyCache implements AutoCloseable {

    static final NDManager MANAGER = Engine.getEngine("PyTorch").newBaseManager();
    static final Operators OPERATORS = new Operators(MANAGER);

    final KvCache cache;

    /** A cache with options given as name, value, name, value. */
    TinyCache(String... options) {
        Map<String, String> values = new HashMap<>();
        for (int i = 0; i < options.length; i += 2) {
            values.put(options[i], options[i + 1]);
        }
        CacheGeometry geometry = new CacheGeometry(1, 2, 1, 32, 0.2, new double[16], 4096);
        cache = new KvCache(MANAGER, OPERATORS, geometry, new CacheOptions(values));
    }

    /** Reserves and commits tokens as a prompt. */
    void append(CacheSequence sequence, int... tokens) {
        try (NDManager scope = MANAGER.newSubManager()) {
            int[] counts = {tokens.length};
            CacheBatch.reserve(scope, cache, List.of(sequence), counts, true);
            CacheBatch.commit(cache, List.of(sequence), List.of(tokens));
        }
    }

    /** Begins to append tokens and fails. */
    void fail(CacheSequence sequence, int count) {
        try (NDManager scope = MANAGER.newSubManager()) {
            int[] counts = {count};
            CacheBatch.reserve(scope, cache, List.of(sequence), counts, true);
            CacheBatch.rollBack(cache, List.of(sequence), new int[] {sequence.length()});
        }
    }

    CacheSequence sequence(int... tokens) {
        CacheSequence sequence = cache.newSequence();
        append(sequence, tokens);
        return sequence;
    }

    /** Token ids that differ from those with another salt. */
    static int[] tokens(int salt, int count) {
        int[] tokens = new int[count];
        Arrays.setAll(tokens, i -> 10_000 * salt + i);
        return tokens;
    }

    int pagesUsed() {
        return cache.sequencePages().pagePool().used();
    }

    int exactPagesUsed() {
        return cache.sequencePages().exactPool().used();
    }

    @Override
    public void close() {
        cache.close();
    }
}
