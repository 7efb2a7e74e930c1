/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ThreadLocalRandom;

/** One sequence on its way: its tokens and text so far, and why it ends. */
final class GeneratingSequence {

    private final int index;
    private final int promptTokens;
    private final int limit;
    private final GenerationConfig config;
    private final SamplerState state;
    private final TextStream pieces;
    private final StopStrings stops;
    private final StringBuilder text = new StringBuilder();
    private final List<TokenLogProb> logProbs = new ArrayList<>();
    private final List<List<TokenLogProb>> topLogProbs = new ArrayList<>();
    private int[] tokens = new int[16];
    private int size;
    private long firstNanos;
    private long lastNanos;
    private FinishReason finishReason;

    /** One sequence per prompt of a call; equal prompts get different random numbers. */
    static List<GeneratingSequence> of(
            List<int[]> prompts,
            LanguageModel model,
            GenerationConfig config,
            HuggingFaceTokenizer tokenizer) {
        long seed = config.getSeed().orElseGet(() -> ThreadLocalRandom.current().nextLong());
        Map<List<Integer>, Integer> copies = new HashMap<>();
        List<GeneratingSequence> sequences = new ArrayList<>();
        for (int i = 0; i < prompts.size(); i++) {
            int[] prompt = prompts.get(i);
            int copy = copies.merge(Arrays.stream(prompt).boxed().toList(), 1, Integer::sum) - 1;
            SamplerState state = new SamplerState(config, seed, copy, prompt);
            sequences.add(
                    new GeneratingSequence(
                            i, prompt, model.contextLength(), config, state, tokenizer));
        }
        return sequences;
    }

    private GeneratingSequence(
            int index,
            int[] prompt,
            int contextLength,
            GenerationConfig config,
            SamplerState state,
            HuggingFaceTokenizer tokenizer) {
        this.index = index;
        this.promptTokens = prompt.length;
        this.limit = contextLength - prompt.length;
        this.config = config;
        this.state = state;
        this.pieces = tokenizer == null ? null : new TextStream(tokenizer, true, prompt);
        this.stops = new StopStrings(config.getStopStrings());
    }

    /**
     * Chooses the next token from the raw logits of this sequence. Uses nothing that {@link
     * #accept} changes, so that another thread may be ahead with choosing.
     */
    Choice choose(float[] logits, Sampler sampler) {
        int token = sampler.sample(logits, state);
        float logProb = config.isLogProbs() ? Sampler.logProb(logits, token) : Float.NaN;
        List<TokenLogProb> alternatives =
                config.isLogProbs() && config.getTopLogProbs() > 0
                        ? Sampler.topLogProbs(logits, config.getTopLogProbs())
                        : List.of();
        return new Choice(token, logProb, alternatives, System.nanoTime());
    }

    /** Chooses a token that is known to be what a plain greedy choice gives. */
    Choice choose(int mostProbable) {
        return new Choice(mostProbable, Float.NaN, List.of(), System.nanoTime());
    }

    /** Whether a sequence ends with its latest token, whatever its text is. */
    boolean endsWith(int token, int size) {
        return isEos(token) || size >= config.getMaxNewTokens() || size >= limit;
    }

    /** Appends a token that was chosen. */
    GeneratedToken accept(Choice choice) {
        if (config.isLogProbs()) {
            logProbs.add(new TokenLogProb(choice.token(), choice.logProb()));
            if (config.getTopLogProbs() > 0) {
                topLogProbs.add(choice.alternatives());
            }
        }
        lastNanos = choice.nanos();
        firstNanos = size == 0 ? lastNanos : firstNanos;
        String piece = append(choice.token());
        return new GeneratedToken(
                index,
                size - 1,
                choice.token(),
                piece,
                choice.logProb(),
                choice.alternatives(),
                finishReason);
    }

    private String append(int token) {
        if (size == tokens.length) {
            tokens = Arrays.copyOf(tokens, 2 * size);
        }
        tokens[size++] = token;
        boolean eos = isEos(token);
        String piece = eos || pieces == null ? "" : stops.add(pieces.add(token));
        text.append(piece);
        finishReason = reasonAfter(eos);
        return finishReason == null ? piece : piece + flush();
    }

    private boolean isEos(int token) {
        return !config.isIgnoreEos() && config.getEosTokenIds().contains(token);
    }

    private FinishReason reasonAfter(boolean eos) {
        if (eos) {
            return FinishReason.EOS;
        }
        if (stops.found()) {
            return FinishReason.STOP;
        }
        if (size >= config.getMaxNewTokens()) {
            return FinishReason.LENGTH;
        }
        return size >= limit ? FinishReason.CONTEXT_FULL : null;
    }

    /**
     * Gives out the text that was held back. An incomplete character may complete a stop string, so
     * a sequence may still end with STOP here.
     */
    private String flush() {
        if (pieces == null || stops.found()) {
            return "";
        }
        String rest = stops.add(pieces.flush());
        if (stops.found()) {
            finishReason = FinishReason.STOP;
        } else {
            rest += stops.flush();
        }
        text.append(rest);
        return rest;
    }

    /** Ends the sequence from outside and returns the text that was held back. */
    String end(FinishReason reason) {
        finishReason = reason;
        return flush();
    }

    int index() {
        return index;
    }

    int lastToken() {
        return tokens[size - 1];
    }

    boolean finished() {
        return finishReason != null;
    }

    GenerationResult result(long startNanos, String message, boolean retryable, CacheUsage usage) {
        Duration first = size == 0 ? Duration.ZERO : Duration.ofNanos(firstNanos - startNanos);
        double seconds = (lastNanos - firstNanos) / 1e9;
        return new GenerationResult(
                Arrays.copyOf(tokens, size),
                text.toString(),
                finishReason,
                message,
                retryable,
                promptTokens,
                List.copyOf(logProbs),
                List.copyOf(topLogProbs),
                first,
                size < 2 || seconds <= 0 ? 0 : (size - 1) / seconds,
                usage);
    }
}
