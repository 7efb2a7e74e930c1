/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.evaluate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.llama.LlamaEvaluator;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * Measures the perplexity of a text under several KV caches, and how far each moves the predictions
 * from those with the cache {@code auto}, in one pass over the text.
 *
 * <p>The text is tokenized once, without special tokens, and cut into windows that do not overlap;
 * each window is evaluated alone, and its first token is not predicted. Within a window every token
 * reads the ones before it as real decoding would.
 *
 * <pre>
 * try (Perplexity perplexity = new Perplexity(model, List.of(CacheOptions.of("rotatekv4")), 2048)) {
 *     List&lt;int[]&gt; windows = Perplexity.windows(Perplexity.tokenize(tokenizer, text), 2048, 40);
 *     windows.forEach(perplexity::add);
 *     System.out.println(perplexity.results());
 * }
 * </pre>
 *
 * <p>Used by one thread at a time.
 */
public final class Perplexity implements AutoCloseable {

    private final LlamaModel model;
    private final List<CacheOptions> caches;
    private final List<LlamaEvaluator> evaluators = new ArrayList<>();
    private final double[][] sums;
    private int windows;
    private long tokens;
    private int longest;

    /**
     * Prepares a measurement.
     *
     * @param model the model
     * @param caches the caches to compare; {@code auto} is the reference and need not be among them
     * @param context the longest window, in tokens
     * @throws IllegalArgumentException if a cache or the context does not fit the model
     */
    public Perplexity(LlamaModel model, List<CacheOptions> caches, int context) {
        this.model = model;
        this.caches = List.copyOf(caches);
        try {
            evaluators.add(model.evaluator(CacheOptions.of("auto"), context));
            for (CacheOptions cache : caches) {
                evaluators.add(
                        isReference(cache) ? evaluators.get(0) : model.evaluator(cache, context));
            }
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
        sums = new double[evaluators.size()][3];
    }

    private static boolean isReference(CacheOptions cache) {
        return "auto".equals(cache.dtype().name());
    }

    /**
     * Tokenizes a text as a whole, without special tokens.
     *
     * @param tokenizer the model's tokenizer, created without truncation
     * @param text the text
     * @return the token ids
     */
    public static int[] tokenize(HuggingFaceTokenizer tokenizer, String text) {
        return Arrays.stream(tokenizer.encode(text, false, false).getIds())
                .mapToInt(Math::toIntExact)
                .toArray();
    }

    /**
     * Chooses windows, spread evenly over a text.
     *
     * @param tokens the text's token ids
     * @param context tokens of a window
     * @param count how many windows are wanted
     * @return of the text's windows in order, the floor(all * i / count)-th for each i from 0
     * @throws IllegalArgumentException if the text does not have as many windows
     */
    public static List<int[]> windows(int[] tokens, int context, int count) {
        if (context < 2) {
            throw new IllegalArgumentException(
                    "A context of " + context + " tokens predicts nothing; give 2 or more.");
        }
        int all = tokens.length / context;
        if (count < 1 || count > all) {
            throw new IllegalArgumentException(
                    "The text has "
                            + tokens.length
                            + " tokens, that is "
                            + all
                            + " windows of "
                            + context
                            + "; "
                            + count
                            + " were asked for. "
                            + (all > 0
                                    ? "Give 1 to " + all + " windows, or a smaller context."
                                    : "Give a longer text or a smaller context."));
        }
        List<int[]> windows = new ArrayList<>();
        for (int i = 0; i < count; ++i) {
            int begin = Math.toIntExact((long) all * i / count) * context;
            windows.add(Arrays.copyOfRange(tokens, begin, begin + context));
        }
        return windows;
    }

    /**
     * Evaluates one window.
     *
     * @param window its token ids, two or more
     */
    public void add(int[] window) {
        try (NDManager scope = evaluators.get(0).newManager()) {
            List<NDArray> states = new ArrayList<>();
            for (LlamaEvaluator evaluator : evaluators) {
                states.add(
                        states.isEmpty() || evaluator != evaluators.get(0)
                                ? evaluator.hiddenStates(scope, window)
                                : states.get(0));
            }
            List<LlamaEvaluator.Sums> compared = LlamaEvaluator.compare(model, states, window);
            for (int i = 0; i < sums.length; ++i) {
                sums[i][0] += compared.get(i).negativeLogLikelihood();
                sums[i][1] += compared.get(i).divergence();
                sums[i][2] += compared.get(i).agreements();
            }
        }
        ++windows;
        tokens += window.length - 1;
        longest = Math.max(longest, window.length);
    }

    /**
     * Adds the windows that another measurement of the same model and caches has evaluated, so that
     * several threads can share a text.
     *
     * @param other the other measurement; it stays as it is
     * @throws IllegalArgumentException if it compares other caches
     */
    public void addAll(Perplexity other) {
        if (!caches.equals(other.caches)) {
            throw new IllegalArgumentException(
                    "Only measurements of the same caches, in the same order, can be added up.");
        }
        for (int i = 0; i < sums.length; ++i) {
            for (int j = 0; j < sums[i].length; ++j) {
                sums[i][j] += other.sums[i][j];
            }
        }
        windows += other.windows;
        tokens += other.tokens;
        longest = Math.max(longest, other.longest);
    }

    /**
     * Returns the results over all windows so far.
     *
     * @return one result per cache, in the order of the caches
     * @throws IllegalStateException if there was no window
     */
    public List<PerplexityResult> results() {
        if (tokens == 0) {
            throw new IllegalStateException("No window was evaluated; call add first.");
        }
        List<PerplexityResult> results = new ArrayList<>();
        for (int i = 1; i < sums.length; ++i) {
            LlamaEvaluator evaluator = evaluators.get(i);
            results.add(
                    new PerplexityResult(
                            evaluator.options().dtype().name(),
                            Math.exp(sums[i][0] / tokens),
                            windows,
                            tokens,
                            evaluator.bitsPerKey(),
                            evaluator.bitsPerValue(),
                            evaluator.bitsPerKey(longest),
                            evaluator.bitsPerValue(longest),
                            sums[i][1] / tokens,
                            sums[i][2] / tokens));
        }
        return results;
    }

    /** Frees the caches; the model stays. */
    @Override
    public void close() {
        evaluators.forEach(LlamaEvaluator::close);
    }
}
