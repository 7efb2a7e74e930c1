/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.CacheFullException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * Decodes a batch of prompts, one token of each sequence a call.
 *
 * <p>Used by one thread at a time, except {@link Cancellation#cancel}.
 */
final class DecodingLoop implements GenerationRun {

    private final LanguageModel model;
    private final List<int[]> prompts;
    private final GenerationListener listener;
    private final Cancellation cancellation;
    private final Sampler sampler;
    private final NextTokens next;
    private final boolean greedy;
    private final GenerationResult[] results;
    private final long startNanos = System.nanoTime();
    private List<GeneratingSequence> running;
    private DecodingBatch batch;
    private boolean stepDue;

    DecodingLoop(
            LanguageModel model,
            HuggingFaceTokenizer tokenizer,
            List<int[]> prompts,
            GenerationConfig config,
            GenerationListener listener,
            Cancellation cancellation) {
        this.model = model;
        this.prompts = prompts;
        this.listener = listener;
        this.cancellation = cancellation;
        sampler = new Sampler(config, model.vocabularySize());
        next = new NextTokens(model.vocabularySize());
        greedy = config.isPlainGreedy();
        results = new GenerationResult[prompts.size()];
        running = GeneratingSequence.of(prompts, model, config, tokenizer);
    }

    /** Gives every running sequence one token. */
    @Override
    public boolean advance() {
        if (!cancellation.isCancelled() && batch == null && !running.isEmpty()) {
            batch = model.prefill(prompts);
        }
        if (cancellation.isCancelled()) {
            endAll(FinishReason.CANCELLED, "", false);
        } else if (prepareLogits()) {
            chooseTokens();
            dropFinished();
        }
        return !running.isEmpty();
    }

    @Override
    public List<GenerationResult> results() {
        return List.of(results);
    }

    @Override
    public void close() {
        running = List.of();
        if (batch != null) {
            batch.close();
        }
    }

    /** Feeds the tokens chosen last; a full cache ends all sequences with the text they have. */
    private boolean prepareLogits() {
        if (!stepDue) {
            stepDue = true;
            return !running.isEmpty();
        }
        try {
            batch.step(running.stream().mapToInt(GeneratingSequence::lastToken).toArray());
            return true;
        } catch (CacheFullException e) {
            // Where several run, the others are this call's own.
            boolean retryable = e.fitsAlone() && running.size() == 1;
            endAll(FinishReason.CACHE_FULL, e.getMessage(), retryable);
            return false;
        }
    }

    private void chooseTokens() {
        next.read(batch, greedy);
        for (int i = 0; i < running.size(); i++) {
            GeneratingSequence sequence = running.get(i);
            GeneratedToken token = sequence.accept(next.choose(i, sequence, size -> sampler));
            boolean goOn = listener.onToken(token);
            if (sequence.finished()) {
                finish(sequence, "");
            } else if (!goOn) {
                finish(sequence, sequence.end(FinishReason.CANCELLED));
            }
        }
    }

    private void dropFinished() {
        int[] rows = new int[running.size()];
        int count = 0;
        List<GeneratingSequence> left = new ArrayList<>();
        for (int i = 0; i < running.size(); i++) {
            if (!running.get(i).finished()) {
                rows[count++] = i;
                left.add(running.get(i));
            }
        }
        if (count > 0 && count < running.size()) {
            batch.keep(Arrays.copyOf(rows, count));
        }
        running = left;
    }

    private void endAll(FinishReason reason, String message, boolean retryable) {
        for (GeneratingSequence sequence : running) {
            finish(sequence, sequence.end(reason), message, retryable);
        }
        running = List.of();
    }

    private void finish(GeneratingSequence sequence, String remainder) {
        finish(sequence, remainder, "", false);
    }

    private void finish(
            GeneratingSequence sequence, String remainder, String message, boolean retryable) {
        CacheUsage usage = batch == null ? null : batch.usage();
        GenerationResult result = sequence.result(startNanos, message, retryable, usage);
        results[sequence.index()] = result;
        listener.onFinish(sequence.index(), remainder, result);
    }
}
