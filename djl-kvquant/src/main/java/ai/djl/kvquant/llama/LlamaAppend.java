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
import java.util.Comparator;
import java.util.List;
import java.util.stream.IntStream;

/**
 * Appends new tokens to sequences and computes the logits and hidden states of all of them, which
 * DJL's contract for causal language models asks for; {@link LlamaBatch} computes the last ones
 * only.
 */
final class LlamaAppend {

    private final LlamaModel model;
    private final KvCache cache;
    private final List<CacheSequence> sequences;
    private final List<int[]> tokens;
    private final boolean allLogits;
    private final Rows logits = new Rows();
    private final Rows hidden = new Rows();

    /** For sequences and at least one new token of each. */
    LlamaAppend(
            LlamaModel model,
            KvCache cache,
            List<CacheSequence> sequences,
            List<int[]> tokens,
            boolean allLogits) {
        this.model = model;
        this.cache = cache;
        this.sequences = sequences;
        this.tokens = tokens;
        this.allLogits = allLogits;
    }

    /** Rows of new tokens in the order of computing, and each one's place among all new tokens. */
    private static final class Rows {

        private final NDList pieces = new NDList();
        private final List<Long> places = new ArrayList<>();

        void add(NDArray piece, List<Long> itsPlaces) {
            pieces.add(piece);
            places.addAll(itsPlaces);
        }

        /** All rows by place. */
        NDArray inOrder(NDManager owner) {
            long[] order =
                    IntStream.range(0, places.size())
                            .boxed()
                            .sorted(Comparator.comparing(places::get))
                            .mapToLong(i -> i)
                            .toArray();
            NDArray all = pieces.size() == 1 ? pieces.get(0) : NDArrays.concat(pieces);
            if (IntStream.range(0, order.length).anyMatch(i -> order[i] != i)) {
                all = all.get(all.getManager().create(order));
            }
            all.attach(owner);
            return all;
        }
    }

    /** Appends all tokens, or none if it fails; see {@link CacheBatch#rollBack}. */
    TokenStates run(NDManager owner) {
        int[] before = sequences.stream().mapToInt(CacheSequence::length).toArray();
        try (NDManager scope = model.manager().newSubManager()) {
            for (List<Integer> group : CacheBatch.groups(sequences)) {
                requireRoom(group);
            }
            for (List<Integer> group : CacheBatch.groups(sequences)) {
                if (isDecoding(group)) {
                    decode(scope, group);
                } else {
                    prefill(scope, group);
                }
            }
            return new TokenStates(logits.inOrder(owner), hidden.inOrder(owner));
        } catch (RuntimeException | Error e) {
            CacheBatch.rollBack(cache, sequences, before);
            throw e;
        }
    }

    /** For all tokens before the first of them is computed. */
    private void requireRoom(List<Integer> group) {
        CacheBatch.requireRoom(
                cache,
                group.stream().map(sequences::get).toList(),
                group.stream().mapToInt(i -> tokens.get(i).length).toArray(),
                !isDecoding(group));
    }

    private boolean isDecoding(List<Integer> group) {
        return group.stream()
                .allMatch(i -> tokens.get(i).length == 1 && sequences.get(i).length() > 0);
    }

    private void decode(NDManager scope, List<Integer> group) {
        List<CacheSequence> rows = group.stream().map(sequences::get).toList();
        List<int[]> appended = group.stream().map(tokens::get).toList();
        int[] counts = new int[rows.size()];
        Arrays.fill(counts, 1);
        CacheBatch tables = CacheBatch.reserve(scope, cache, rows, counts, false);
        Object[] arguments =
                tables.arguments(
                        cache, ids(scope, appended), scope.create(CacheBatch.starts(counts)));
        NDArray x = model.module().run(scope, "decode_layers", arguments).get(0);
        CacheBatch.commit(cache, rows, appended);
        add(scope, x, group.stream().map(this::firstPlace).toList());
    }

    private static NDArray ids(NDManager scope, List<int[]> tokens) {
        return scope.create(tokens.stream().flatMapToInt(Arrays::stream).asLongStream().toArray());
    }

    /** The place of a sequence's first new token among those of all. */
    private long firstPlace(int sequence) {
        return tokens.subList(0, sequence).stream().mapToLong(t -> t.length).sum();
    }

    /** Adds what follows from the last layer's output of tokens in the given places. */
    private void add(NDManager scope, NDArray x, List<Long> places) {
        hidden.add(model.module().run(scope, "final_norm", x).get(0), places);
        List<Integer> wanted =
                IntStream.range(0, places.size())
                        .filter(i -> allLogits || isLast(places.get(i)))
                        .boxed()
                        .toList();
        if (wanted.size() == places.size()) {
            logits.add(model.module().run(scope, "logits", x).get(0), places);
        } else if (!wanted.isEmpty()) {
            long[] rows = wanted.stream().mapToLong(i -> i).toArray();
            NDArray some = x.get(x.getManager().create(rows));
            logits.add(
                    model.module().run(scope, "logits", some).get(0),
                    wanted.stream().map(places::get).toList());
        }
    }

    private boolean isLast(long place) {
        long end = 0;
        for (int[] ofSequence : tokens) {
            end += ofSequence.length;
            if (place < end) {
                return place == end - 1;
            }
        }
        return false;
    }

    private void prefill(NDManager scope, List<Integer> group) {
        int[] done = new int[sequences.size()];
        for (int i : group) {
            CacheSequence sequence = sequences.get(i);
            int count = tokens.get(i).length;
            if (sequence.length() == 0 && cache.wantsPromptBasis(count)) {
                try (NDManager ofPass = scope.newSubManager()) {
                    LlamaPromptPass pass = new LlamaPromptPass(model, cache, sequence);
                    add(scope, pass.append(ofPass, tokens.get(i)), places(i, 0, count));
                }
                done[i] = count;
            }
        }
        while (chunk(scope, group, done)) {
            // Until all tokens are done.
        }
    }

    private List<Long> places(int sequence, int begin, int end) {
        List<Long> places = new ArrayList<>();
        for (long i = begin; i < end; ++i) {
            places.add(firstPlace(sequence) + i);
        }
        return places;
    }

    /** Computes the next tokens that are not done; false if there are none. */
    private boolean chunk(NDManager scope, List<Integer> group, int[] done) {
        List<CacheSequence> some = new ArrayList<>();
        List<int[]> appended = new ArrayList<>();
        List<Long> places = new ArrayList<>();
        for (int i : group) {
            int count =
                    Math.min(model.chunkTokens() - places.size(), tokens.get(i).length - done[i]);
            if (count > 0) {
                int end = done[i] + count;
                some.add(sequences.get(i));
                appended.add(Arrays.copyOfRange(tokens.get(i), done[i], end));
                places.addAll(places(i, done[i], end));
                done[i] = end;
            }
        }
        if (places.isEmpty()) {
            return false;
        }
        int[] counts = appended.stream().mapToInt(t -> t.length).toArray();
        int[] starts = CacheBatch.starts(counts);
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
            NDArray x = model.module().run(ofChunk, "prefill_layers", arguments).get(0);
            CacheBatch.commit(cache, some, appended);
            add(scope, x, places);
            return true;
        }
    }
}
