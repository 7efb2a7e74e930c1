/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.evaluate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.SharedPrefill;
import ai.djl.ndarray.NDArray;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Measures whether a model finds a pass key in a long text under several KV caches.
 *
 * <p>All but the last token of a prompt are computed once, in full precision, and stored in every
 * cache; the last token and the answer are then decoded from each, greedily. So every digit of the
 * answer is read through the cache, and caches differ by how they store alone.
 *
 * <pre>
 * NeedlePrompts prompts = new NeedlePrompts(tokenizer, NeedlePrompts.FILLER, 1);
 * try (Needle needle = new Needle(model, tokenizer, List.of(CacheOptions.of("rotatekv4")), 4096)) {
 *     needle.add(prompts.create(4096, 0.5, 0));
 *     System.out.println(needle.results());
 * }
 * </pre>
 *
 * <p>Used by one thread at a time.
 */
public final class Needle implements AutoCloseable {

    private final HuggingFaceTokenizer tokenizer;
    private final List<CacheOptions> options;
    private final List<LlamaLanguageModel> caches = new ArrayList<>();
    private final SharedPrefill prefill;
    private final Map<Cell, Score> scores = new LinkedHashMap<>();

    private record Cell(int length, double depth) {}

    private static final class Score {
        private final int[] hits;
        private int trials;

        Score(int caches) {
            hits = new int[caches];
        }
    }

    /**
     * Prepares a measurement.
     *
     * @param model the model
     * @param tokenizer its tokenizer
     * @param caches the caches to compare
     * @param longest tokens of the longest prompt with its answer
     * @throws IllegalArgumentException if a cache or the length does not fit the model
     */
    public Needle(
            LlamaModel model,
            HuggingFaceTokenizer tokenizer,
            List<CacheOptions> caches,
            int longest) {
        this.tokenizer = tokenizer;
        options = List.copyOf(caches);
        int context = model.geometry().maxTokens();
        if (longest < 2 || longest > context) {
            throw new IllegalArgumentException(
                    "Needle prompts of "
                            + longest
                            + " tokens are not possible; allowed: 2 to the model's "
                            + context
                            + ".");
        }
        prefill = new SharedPrefill(model, longest);
        try {
            for (CacheOptions each : caches) {
                this.caches.add(model.withCache(each.forOneSequence(longest)));
            }
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
    }

    /**
     * Lets every cache answer a prompt.
     *
     * @param prompt the prompt
     * @return for each cache whether it gave the key
     */
    public boolean[] add(NeedlePrompt prompt) {
        int last = prompt.tokens().length - 1;
        int[] stored = Arrays.copyOf(prompt.tokens(), last);
        List<DecodingBatch> batches = prefill.run(stored, caches);
        boolean[] found = new boolean[batches.size()];
        try {
            for (int i = 0; i < found.length; ++i) {
                found[i] = answers(batches.get(i), prompt.tokens()[last], prompt);
            }
        } finally {
            batches.forEach(DecodingBatch::close);
        }
        Cell cell = new Cell(prompt.length(), prompt.depth());
        Score score = scores.computeIfAbsent(cell, c -> new Score(found.length));
        ++score.trials;
        for (int i = 0; i < found.length; ++i) {
            score.hits[i] += found[i] ? 1 : 0;
        }
        return found;
    }

    /**
     * Adds the prompts that another measurement of the same model and caches has asked, so that
     * several threads can share them.
     *
     * @param other the other measurement; it stays as it is
     * @throws IllegalArgumentException if it compares other caches
     */
    public void addAll(Needle other) {
        if (!options.equals(other.options)) {
            throw new IllegalArgumentException(
                    "Only measurements of the same caches, in the same order, can be added up.");
        }
        other.scores.forEach(
                (cell, score) -> {
                    Score sum = scores.computeIfAbsent(cell, c -> new Score(options.size()));
                    sum.trials += score.trials;
                    for (int i = 0; i < sum.hits.length; ++i) {
                        sum.hits[i] += score.hits[i];
                    }
                });
    }

    /** Decodes as long as the text can still become the key. */
    private boolean answers(DecodingBatch batch, int lastToken, NeedlePrompt prompt) {
        long[] answer = new long[prompt.answerTokens()];
        int token = lastToken;
        String text = "";
        for (int i = 0; i < answer.length && prompt.key().startsWith(text); ++i) {
            batch.step(new int[] {token});
            token = mostProbable(batch.logits());
            answer[i] = token;
            text = tokenizer.decode(Arrays.copyOf(answer, i + 1)).strip();
        }
        return text.equals(prompt.key());
    }

    private static int mostProbable(NDArray logits) {
        try (NDArray best = logits.argMax(-1)) {
            return Math.toIntExact(best.toLongArray()[0]);
        }
    }

    /**
     * Returns the results of all prompts so far.
     *
     * @return for each length and depth, in the order in which they came, one result per cache
     */
    public List<NeedleResult> results() {
        List<NeedleResult> results = new ArrayList<>();
        scores.forEach(
                (cell, score) -> {
                    for (int i = 0; i < options.size(); ++i) {
                        results.add(
                                new NeedleResult(
                                        options.get(i).dtype().name(),
                                        cell.length(),
                                        cell.depth(),
                                        score.trials,
                                        score.hits[i]));
                    }
                });
        return results;
    }

    /** Frees the caches; the model stays. */
    @Override
    public void close() {
        caches.forEach(LlamaLanguageModel::close);
        prefill.close();
    }
}
