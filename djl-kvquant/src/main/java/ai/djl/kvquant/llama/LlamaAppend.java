/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.cache.CacheBatch;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * Appends new tokens to sequences and computes the logits and hidden states of all of them, which
 * DJL's contract for causal language models asks for; {@link LlamaBatch} computes the last ones
 * only.
 */
final class LlamaAppend {

    /** Tokens that one call processes: bounds the memory of activations. */
    private static final int CHUNK_TOKENS = 512;

    private final LlamaModel model;
    private final KvCache cache;
    private final List<CacheSequence> sequences;
    private final List<int[]> tokens;

    /** What a chunk computed, and where its rows belong among all new tokens. */
    private record Part(NDList states, List<Long> rows) {}

    /** For sequences and at least one new token of each. */
    LlamaAppend(
            LlamaModel model, KvCache cache, List<CacheSequence> sequences, List<int[]> tokens) {
        this.model = model;
        this.cache = cache;
        this.sequences = sequences;
        this.tokens = tokens;
    }

    /** Appends all tokens, or none if it fails. */
    TokenStates run(NDManager owner) {
        int[] before = sequences.stream().mapToInt(CacheSequence::length).toArray();
        try (NDManager scope = model.manager().newSubManager()) {
            List<Part> parts = new ArrayList<>();
            for (List<Integer> group : CacheBatch.groups(sequences)) {
                if (isDecoding(group)) {
                    parts.add(decode(scope, group));
                } else {
                    prefill(scope, group, parts);
                }
            }
            return inOrder(owner, parts);
        } catch (RuntimeException | Error e) {
            for (int i = 0; i < before.length; ++i) {
                if (sequences.get(i).length() > before[i]) {
                    sequences.get(i).truncate(before[i]);
                }
            }
            throw e;
        }
    }

    private boolean isDecoding(List<Integer> group) {
        return group.stream()
                .allMatch(i -> tokens.get(i).length == 1 && sequences.get(i).length() > 0);
    }

    private Part decode(NDManager scope, List<Integer> group) {
        List<CacheSequence> rows = group.stream().map(sequences::get).toList();
        List<int[]> appended = group.stream().map(tokens::get).toList();
        int[] counts = new int[rows.size()];
        Arrays.fill(counts, 1);
        CacheBatch tables = CacheBatch.reserve(scope, cache, rows, counts, false);
        Object[] arguments =
                tables.arguments(
                        cache, ids(scope, appended), scope.create(LlamaBatch.starts(counts)));
        NDArray hidden = model.module().run(scope, "decode_layers", arguments).get(0);
        CacheBatch.commit(cache, rows, appended);
        return new Part(states(scope, hidden), group.stream().map(this::firstRow).toList());
    }

    private static NDArray ids(NDManager scope, List<int[]> tokens) {
        return scope.create(tokens.stream().flatMapToInt(Arrays::stream).asLongStream().toArray());
    }

    /** The place of a sequence's first new token among those of all. */
    private long firstRow(int sequence) {
        return tokens.subList(0, sequence).stream().mapToLong(t -> t.length).sum();
    }

    private NDList states(NDManager scope, NDArray hidden) {
        return model.module().run(scope, "states", hidden);
    }

    private void prefill(NDManager scope, List<Integer> group, List<Part> parts) {
        int[] done = new int[sequences.size()];
        for (int i : group) {
            CacheSequence sequence = sequences.get(i);
            int count = tokens.get(i).length;
            if (sequence.length() == 0 && cache.wantsPromptBasis(count)) {
                LlamaPromptPass pass = new LlamaPromptPass(model, cache, sequence);
                NDArray hidden = pass.append(scope, tokens.get(i));
                done[i] = count;
                parts.add(new Part(states(scope, hidden), rows(i, 0, count)));
            }
        }
        for (Part part = chunk(scope, group, done);
                part != null;
                part = chunk(scope, group, done)) {
            parts.add(part);
        }
    }

    private List<Long> rows(int sequence, int begin, int end) {
        List<Long> rows = new ArrayList<>();
        for (long i = begin; i < end; ++i) {
            rows.add(firstRow(sequence) + i);
        }
        return rows;
    }

    /** Computes the next tokens that are not done; null if there are none. */
    private Part chunk(NDManager scope, List<Integer> group, int[] done) {
        List<CacheSequence> some = new ArrayList<>();
        List<int[]> appended = new ArrayList<>();
        List<Long> rows = new ArrayList<>();
        for (int i : group) {
            int count = Math.min(CHUNK_TOKENS - rows.size(), tokens.get(i).length - done[i]);
            if (count > 0) {
                int end = done[i] + count;
                some.add(sequences.get(i));
                appended.add(Arrays.copyOfRange(tokens.get(i), done[i], end));
                rows.addAll(rows(i, done[i], end));
                done[i] = end;
            }
        }
        if (rows.isEmpty()) {
            return null;
        }
        int[] counts = appended.stream().mapToInt(t -> t.length).toArray();
        int[] starts = LlamaBatch.starts(counts);
        try (NDManager ofChunk = scope.newSubManager()) {
            CacheBatch tables = CacheBatch.reserve(ofChunk, cache, some, counts, true);
            Object[] arguments =
                    tables.arguments(
                            cache,
                            ids(ofChunk, appended),
                            ofChunk.create(starts),
                            Arrays.stream(starts).asLongStream().toArray(),
                            some.stream().mapToLong(CacheSequence::length).toArray(),
                            some.stream().mapToLong(cache::biasedFrom).toArray(),
                            some.stream().mapToLong(cache::biasedTo).toArray(),
                            cache.wantsMassiveEntries());
            NDArray hidden = model.module().run(ofChunk, "prefill_layers", arguments).get(0);
            CacheBatch.commit(cache, some, appended);
            return new Part(states(scope, hidden), rows);
        }
    }

    /** Puts what chunks computed into the order of the tokens. */
    private static TokenStates inOrder(NDManager owner, List<Part> parts) {
        List<Long> rows = parts.stream().flatMap(part -> part.rows.stream()).toList();
        long[] from = new long[rows.size()];
        boolean sorted = true;
        for (int i = 0; i < from.length; ++i) {
            from[Math.toIntExact(rows.get(i))] = i;
            sorted &= rows.get(i) == i;
        }
        NDArray[] both = new NDArray[2];
        for (int i = 0; i < 2; ++i) {
            NDList pieces = new NDList();
            for (Part part : parts) {
                pieces.add(part.states.get(i));
            }
            both[i] = pieces.size() == 1 ? pieces.get(0) : NDArrays.concat(pieces);
            if (!sorted) {
                both[i] = both[i].get(both[i].getManager().create(from));
            }
        }
        both[0].attach(owner);
        both[1].attach(owner);
        return new TokenStates(both[0], both[1]);
    }
}
