/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.kvquant.cache.CacheFullException;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Function;
import java.util.function.Predicate;

/** A model whose logits are a function of the tokens so far, and which counts what is open. */
final class FakeModel implements LanguageModel {

    private final int vocabularySize;
    private final int contextLength;
    private final int capacity;
    private final Function<List<Integer>, float[]> logits;
    private final List<String> calls = Collections.synchronizedList(new ArrayList<>());
    private final List<Batch> live = Collections.synchronizedList(new ArrayList<>());
    private Runnable onStep = () -> {};
    private Predicate<List<Integer>> broken = row -> false;
    private boolean brokenClose;
    private boolean tellsMostProbable;
    private final AtomicInteger logitReads = new AtomicInteger();

    FakeModel(
            int vocabularySize,
            int contextLength,
            int capacity,
            Function<List<Integer>, float[]> logits) {
        this.vocabularySize = vocabularySize;
        this.contextLength = contextLength;
        this.capacity = capacity;
        this.logits = logits;
    }

    /** A model that always continues with a fixed text, whatever the prompt is. */
    static FakeModel saying(int vocabularySize, int promptLength, int... script) {
        return new FakeModel(
                vocabularySize,
                1000,
                1000,
                tokens -> peak(vocabularySize, script[tokens.size() - promptLength]));
    }

    static float[] peak(int vocabularySize, int token) {
        float[] row = new float[vocabularySize];
        row[token] = 10;
        return row;
    }

    int open() {
        return live.size();
    }

    List<String> calls() {
        return calls;
    }

    /** Makes steps fail that a row takes part in. */
    void failOn(Predicate<List<Integer>> row) {
        broken = row;
    }

    /** Makes batches tell the most probable tokens. */
    FakeModel tellMostProbable() {
        tellsMostProbable = true;
        return this;
    }

    /** How often logits were asked for. */
    int logitReads() {
        return logitReads.get();
    }

    /** Makes every close fail, after it has counted. */
    void failOnClose() {
        brokenClose = true;
    }

    void onStep(Runnable action) {
        onStep = action;
    }

    @Override
    public int vocabularySize() {
        return vocabularySize;
    }

    @Override
    public int contextLength() {
        return contextLength;
    }

    @Override
    public DecodingBatch prefill(List<int[]> prompts) {
        calls.add("prefill " + prompts.size());
        List<List<Integer>> rows = new ArrayList<>();
        for (int[] prompt : prompts) {
            List<Integer> row = new ArrayList<>();
            for (int token : prompt) {
                row.add(token);
            }
            rows.add(row);
        }
        checkCapacity(rows.stream().mapToInt(List::size).sum());
        return new Batch(rows);
    }

    /** Refuses more tokens than all open batches together have room for. */
    private void checkCapacity(int more) {
        int used = live.stream().flatMap(b -> b.rows.stream()).mapToInt(List::size).sum();
        if (used + more > capacity) {
            throw new CacheFullException("KV cache is full: " + capacity + " tokens fit.");
        }
    }

    @Override
    public ChunkedPrefill startPrefill(int[] prompt, int chunkTokens) {
        if (prompt.length > capacity) {
            throw new CacheFullException("A prompt never fits: " + capacity + " tokens do.");
        }
        List<Integer> row = new ArrayList<>();
        Batch batch = new Batch(new ArrayList<>(List.of(row)));
        return new ChunkedPrefill() {

            private boolean finished;

            @Override
            public int remaining() {
                return prompt.length - row.size();
            }

            @Override
            public void advance() {
                int count = Math.min(chunkTokens, remaining());
                calls.add("chunk " + count);
                checkCapacity(count);
                for (int i = 0; i < count; i++) {
                    row.add(prompt[row.size()]);
                }
            }

            @Override
            public DecodingBatch finish() {
                if (remaining() > 0) {
                    throw new AssertionError("not computed: " + remaining());
                }
                finished = true;
                return batch;
            }

            @Override
            public void close() {
                if (!finished) {
                    batch.close();
                }
            }
        };
    }

    private final class Batch implements DecodingBatch {

        private final NDManager manager = NDManager.newBaseManager("PyTorch");
        private List<List<Integer>> rows;
        private NDArray current;
        private boolean closed;

        Batch(List<List<Integer>> rows) {
            this.rows = rows;
            live.add(this);
        }

        @Override
        public int size() {
            return rows.size();
        }

        @Override
        public int length(int row) {
            return rows.get(row).size();
        }

        @Override
        public NDArray logits() {
            logitReads.incrementAndGet();
            discard();
            float[] data = new float[rows.size() * vocabularySize];
            for (int i = 0; i < rows.size(); i++) {
                float[] row = logits.apply(rows.get(i));
                System.arraycopy(row, 0, data, i * vocabularySize, vocabularySize);
            }
            current = manager.create(data, new Shape(rows.size(), vocabularySize));
            return current;
        }

        @Override
        public Optional<int[]> mostProbable() {
            int[] tokens = new int[rows.size()];
            for (int i = 0; i < tokens.length; i++) {
                float[] row = logits.apply(rows.get(i));
                for (int token = 0; token < row.length; token++) {
                    if (Float.isNaN(row[token])) {
                        return Optional.empty();
                    }
                    tokens[i] = row[token] > row[tokens[i]] ? token : tokens[i];
                }
            }
            return tellsMostProbable ? Optional.of(tokens) : Optional.empty();
        }

        @Override
        public void step(int[] tokens) {
            onStep.run();
            calls.add("step " + tokens.length);
            if (tokens.length != rows.size()) {
                throw new AssertionError(tokens.length + " tokens for " + rows.size() + " rows");
            }
            if (rows.stream().anyMatch(broken)) {
                throw new IllegalArgumentException("broken row");
            }
            checkCapacity(tokens.length);
            discard();
            for (int i = 0; i < tokens.length; i++) {
                rows.get(i).add(tokens[i]);
            }
        }

        @Override
        public void keep(int[] kept) {
            calls.add("keep " + Arrays.toString(kept));
            discard();
            List<List<Integer>> left = new ArrayList<>();
            for (int row : kept) {
                left.add(rows.get(row));
            }
            rows = left;
        }

        @Override
        public void add(DecodingBatch other) {
            calls.add("add " + other.size());
            discard();
            rows.addAll(((Batch) other).rows);
            other.close();
        }

        @Override
        public DecodingBatch take(int row) {
            calls.add("take " + row);
            if (rows.size() == 1) {
                throw new AssertionError("take leaves nothing");
            }
            discard();
            return new Batch(new ArrayList<>(List.of(rows.remove(row))));
        }

        @Override
        public CacheUsage usage() {
            int tokens = rows.stream().mapToInt(List::size).sum();
            return new CacheUsage(tokens, 4L * tokens, 4, 4, 4, "fake");
        }

        @Override
        public void close() {
            if (!closed) {
                closed = true;
                live.remove(this);
                manager.close();
                if (brokenClose) {
                    throw new IllegalStateException("broken close");
                }
            }
        }

        /** Old logits must not be read any more. */
        private void discard() {
            if (current != null) {
                current.close();
            }
        }
    }
}
