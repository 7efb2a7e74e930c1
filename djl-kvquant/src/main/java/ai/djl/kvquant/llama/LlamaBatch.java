/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.cache.CacheBatch;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.generate.CacheUsage;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;

/** Sequences of a LLaMA model that are decoded together. */
final class LlamaBatch implements DecodingBatch {

    private final LlamaModel model;
    private final KvCache cache;
    private final NDManager manager;
    private List<CacheSequence> sequences;
    private NDArray logits;

    private LlamaBatch(LlamaModel model, KvCache cache, List<CacheSequence> sequences) {
        this.model = model;
        this.cache = cache;
        this.sequences = new ArrayList<>(sequences);
        manager = model.manager().newSubManager();
    }

    /**
     * Appends what of each prompt its sequence does not hold yet, in chunks, and computes the last
     * tokens' logits.
     */
    static LlamaBatch prefill(
            LlamaModel model, KvCache cache, List<CacheSequence> sequences, List<int[]> prompts) {
        LlamaBatch batch = new LlamaBatch(model, cache, sequences);
        try {
            float[][] rows = new float[prompts.size()][];
            for (int row = 0; row < rows.length; ++row) {
                int[] prompt = prompts.get(row);
                if (cache.wantsPromptBasis(prompt.length)) {
                    rows[row] =
                            new LlamaPromptPass(model, cache, sequences.get(row)).prefill(prompt);
                }
            }
            for (Chunk chunk = batch.nextChunk(prompts);
                    !chunk.rows.isEmpty();
                    chunk = batch.nextChunk(prompts)) {
                batch.run(chunk, prompts, rows);
            }
            batch.logits = batch.stack(rows);
            return batch;
        } catch (RuntimeException | Error e) {
            batch.manager.close();
            // What chunks before the one that failed have appended stays.
            int[] lengths = sequences.stream().mapToInt(CacheSequence::length).toArray();
            CacheBatch.rollBack(cache, sequences, lengths);
            throw e;
        }
    }

    /** Fills new sequences with random keys and values; the logits are zeros. */
    static LlamaBatch random(LlamaModel model, KvCache cache, int rows, int tokens) {
        LlamaBatch batch = new LlamaBatch(model, cache, List.of());
        try {
            for (int row = 0; row < rows; ++row) {
                CacheSequence sequence = cache.newSequence();
                batch.sequences.add(sequence);
                while (sequence.length() < tokens) {
                    int count = Math.min(model.chunkTokens(), tokens - sequence.length());
                    batch.fill(sequence, count);
                }
            }
            batch.logits = batch.manager.zeros(new Shape(rows, model.config().vocabSize()));
            return batch;
        } catch (RuntimeException | Error e) {
            batch.close();
            throw e;
        }
    }

    private void fill(CacheSequence sequence, int count) {
        List<CacheSequence> one = List.of(sequence);
        int[] counts = {count};
        try (NDManager scope = manager.newSubManager()) {
            CacheBatch tables = CacheBatch.reserve(scope, cache, one, counts, true);
            Object[] arguments =
                    tables.arguments(cache, count, scope.create(CacheBatch.starts(counts)));
            model.module().run(scope, "random_fill", arguments);
        }
        CacheBatch.commit(cache, one, List.of(new int[count]));
    }

    /** Goes on with a sequence that is stored already. */
    static LlamaBatch of(LlamaModel model, KvCache cache, CacheSequence sequence, float[] logits) {
        LlamaBatch batch = new LlamaBatch(model, cache, List.of(sequence));
        batch.logits = batch.stack(new float[][] {logits});
        return batch;
    }

    /** Some new tokens of some rows. */
    private record Chunk(List<Integer> rows, List<int[]> tokens) {}

    private Chunk nextChunk(List<int[]> prompts) {
        Chunk chunk = new Chunk(new ArrayList<>(), new ArrayList<>());
        int room = model.chunkTokens();
        for (int row = 0; row < prompts.size() && room > 0; ++row) {
            int begin = sequences.get(row).length();
            int count = Math.min(room, prompts.get(row).length - begin);
            if (count > 0) {
                chunk.rows.add(row);
                chunk.tokens.add(Arrays.copyOfRange(prompts.get(row), begin, begin + count));
                room -= count;
            }
        }
        return chunk;
    }

    private void run(Chunk chunk, List<int[]> prompts, float[][] logitRows) {
        List<CacheSequence> parts = chunk.rows.stream().map(sequences::get).toList();
        int[] counts = chunk.tokens.stream().mapToInt(t -> t.length).toArray();
        int[] starts = CacheBatch.starts(counts);
        List<Integer> ended = new ArrayList<>();
        List<Long> last = new ArrayList<>();
        for (int i = 0; i < counts.length; ++i) {
            int row = chunk.rows.get(i);
            if (parts.get(i).length() + counts[i] == prompts.get(row).length) {
                ended.add(row);
                last.add(starts[i + 1] - 1L);
            }
        }
        try (NDManager scope = manager.newSubManager()) {
            NDArray out = prefillStep(scope, parts, chunk.tokens, counts, starts, last);
            CacheBatch.commit(cache, parts, chunk.tokens);
            for (int i = 0; i < ended.size(); ++i) {
                logitRows[ended.get(i)] = out.get(i).toFloatArray();
            }
        }
    }

    private NDArray prefillStep(
            NDManager scope,
            List<CacheSequence> parts,
            List<int[]> tokens,
            int[] counts,
            int[] starts,
            List<Long> last) {
        CacheBatch tables = CacheBatch.reserve(scope, cache, parts, counts, true);
        long[] ids = tokens.stream().flatMapToInt(Arrays::stream).asLongStream().toArray();
        long[] past = parts.stream().mapToLong(CacheSequence::length).toArray();
        NDList result =
                model.module()
                        .run(
                                scope,
                                "prefill",
                                tables.arguments(
                                        cache,
                                        scope.create(ids),
                                        scope.create(starts),
                                        Arrays.stream(starts).asLongStream().toArray(),
                                        past,
                                        parts.stream().mapToLong(cache::biasedFrom).toArray(),
                                        parts.stream().mapToLong(cache::biasedTo).toArray(),
                                        scope.create(
                                                last.stream().mapToLong(Long::longValue).toArray()),
                                        cache.wantsMassiveEntries()));
        return result.get(0);
    }

    private NDArray stack(float[][] rows) {
        return manager.create(rows);
    }

    /** {@inheritDoc} */
    @Override
    public int size() {
        return sequences.size();
    }

    /** {@inheritDoc} */
    @Override
    public int length(int row) {
        return sequences.get(row).length();
    }

    /** {@inheritDoc} */
    @Override
    public NDArray logits() {
        requireOpen();
        return logits;
    }

    /** {@inheritDoc} */
    @Override
    public Optional<int[]> mostProbable() {
        requireOpen();
        return LargestLogits.tokens(logits);
    }

    /** {@inheritDoc} */
    @Override
    public void step(int[] tokens) {
        requireOpen();
        if (tokens.length != size()) {
            throw new IllegalArgumentException(
                    "step got "
                            + tokens.length
                            + " tokens for "
                            + size()
                            + " rows; give one a row.");
        }
        for (int token : tokens) {
            model.requireToken(token);
        }
        for (CacheSequence sequence : sequences) {
            if (sequence.length() == cache.geometry().maxTokens()) {
                throw new IllegalArgumentException(
                        "A sequence has reached the model's context of "
                                + sequence.length()
                                + " tokens; end it, or use a shorter prompt.");
            }
        }
        List<List<Integer>> groups = CacheBatch.groups(sequences);
        try (NDManager scope = manager.newSubManager()) {
            // Room for all before anything is appended to one.
            List<CacheBatch> tables = new ArrayList<>();
            for (List<Integer> rows : groups) {
                List<CacheSequence> part = rows.stream().map(sequences::get).toList();
                tables.add(CacheBatch.reserve(scope, cache, part, ones(rows.size()), false));
            }
            NDArray next;
            if (groups.size() == 1) {
                next = decode(manager, scope, tables.get(0), tokens);
            } else {
                float[][] logitRows = new float[size()][];
                for (int i = 0; i < groups.size(); ++i) {
                    List<Integer> rows = groups.get(i);
                    int[] part = rows.stream().mapToInt(row -> tokens[row]).toArray();
                    NDArray result = decode(scope, scope, tables.get(i), part);
                    for (int j = 0; j < part.length; ++j) {
                        logitRows[rows.get(j)] = result.get(j).toFloatArray();
                    }
                }
                next = stack(logitRows);
            }
            List<int[]> appended = new ArrayList<>();
            for (int token : tokens) {
                appended.add(new int[] {token});
            }
            CacheBatch.commit(cache, sequences, appended);
            replaceLogits(next);
        }
    }

    private NDArray decode(NDManager owner, NDManager scope, CacheBatch tables, int[] tokens) {
        return model.module()
                .run(
                        owner,
                        "decode",
                        tables.arguments(
                                cache,
                                scope.create(Arrays.stream(tokens).asLongStream().toArray()),
                                scope.create(CacheBatch.starts(ones(tokens.length)))))
                .get(0);
    }

    private static int[] ones(int count) {
        int[] ones = new int[count];
        Arrays.fill(ones, 1);
        return ones;
    }

    private void requireOpen() {
        model.requireOpen();
        if (!manager.isOpen()) {
            throw new IllegalStateException("The batch is closed; prefill its prompts again.");
        }
    }

    private void replaceLogits(NDArray next) {
        logits.close();
        logits = next;
    }

    /** {@inheritDoc} */
    @Override
    public void keep(int[] rows) {
        requireOpen();
        if (rows.length == 0 || !Arrays.stream(rows).allMatch(r -> r >= 0 && r < size())) {
            throw new IllegalArgumentException(
                    "keep got the rows "
                            + Arrays.toString(rows)
                            + "; allowed: one or more of 0 to "
                            + (size() - 1)
                            + ". Close the batch to keep none.");
        }
        selectLogits(rows);
        List<CacheSequence> kept = new ArrayList<>();
        for (int row : rows) {
            CacheSequence sequence = sequences.get(row);
            // A row that is kept twice goes on as two sequences that share pages.
            kept.add(kept.contains(sequence) ? sequence.fork() : sequence);
        }
        sequences.stream().filter(s -> !kept.contains(s)).forEach(cache::retire);
        sequences = kept;
    }

    /** {@inheritDoc} */
    @Override
    public void add(DecodingBatch other) {
        requireOpen();
        if (other == this || !(other instanceof LlamaBatch rows) || rows.cache != cache) {
            throw new IllegalArgumentException(
                    "Only another batch of the same model and cache can be added.");
        }
        rows.requireOpen();
        NDArray all = NDArrays.concat(new NDList(logits, rows.logits));
        all.attach(manager);
        replaceLogits(all);
        sequences.addAll(rows.sequences);
        rows.release();
    }

    /** {@inheritDoc} */
    @Override
    public DecodingBatch take(int row) {
        requireOpen();
        if (row < 0 || row >= size() || size() == 1) {
            throw new IllegalArgumentException(
                    "take got the row " + row + " of " + size() + "; allowed: one of several.");
        }
        float[] ofRow = logits.get(row).toFloatArray();
        LlamaBatch taken = of(model, cache, sequences.get(row), ofRow);
        sequences.remove(row);
        int[] rest = IntStream.rangeClosed(0, size()).filter(r -> r != row).toArray();
        selectLogits(rest);
        return taken;
    }

    /** Ends this batch without its sequences. */
    void release() {
        sequences = List.of();
        manager.close();
    }

    private void selectLogits(int[] rows) {
        try (NDManager scope = manager.newSubManager()) {
            NDArray index = scope.create(Arrays.stream(rows).asLongStream().toArray());
            replaceLogits(logits.get(index));
        }
    }

    /** {@inheritDoc} */
    @Override
    public CacheUsage usage() {
        long tokens = sequences.stream().mapToLong(CacheSequence::length).sum();
        return new CacheUsage(
                cache.bytes(sequences),
                tokens * cache.geometry().fp16BytesPerToken(),
                cache.bitsPerKey(sequences),
                cache.bitsPerValue(),
                keyBitsRead(tokens),
                cache.options().dtype().name());
    }

    private double keyBitsRead(long tokens) {
        double bits = 0;
        for (CacheSequence sequence : sequences) {
            bits += sequence.length() * cache.keyReads(sequence).total();
        }
        return bits / Math.max(1, tokens);
    }

    /** {@inheritDoc} */
    @Override
    public void close() {
        sequences.forEach(cache::retire);
        release();
    }
}
