/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.generate.ChunkedPrefill;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.List;

/** A LLaMA model with its cache; thread-safe. */
public final class LlamaLanguageModel implements LanguageModel, AutoCloseable {

    private final LlamaModel model;
    private final KvCache cache;

    LlamaLanguageModel(LlamaModel model, KvCache cache) {
        this.model = model;
        this.cache = cache;
    }

    /** {@inheritDoc} */
    @Override
    public int vocabularySize() {
        return model.config().vocabSize();
    }

    /** {@inheritDoc} */
    @Override
    public int contextLength() {
        return cache.geometry().maxTokens();
    }

    /**
     * {@inheritDoc}
     *
     * <p>A prompt that begins like an earlier sequence, still held, takes over its cache.
     */
    @Override
    public DecodingBatch prefill(List<int[]> prompts) {
        model.requireOpen();
        if (prompts.isEmpty()) {
            throw new IllegalArgumentException("There are no prompts; give at least one.");
        }
        prompts.forEach(this::checkPrompt);
        List<CacheSequence> sequences = new ArrayList<>();
        try {
            for (int[] prompt : prompts) {
                cache.requireRoom(prompt.length);
                sequences.add(cache.sequenceFor(prompt));
            }
            return LlamaBatch.prefill(model, cache, sequences, prompts);
        } catch (RuntimeException | Error e) {
            sequences.forEach(CacheSequence::close);
            throw e;
        }
    }

    /**
     * {@inheritDoc}
     *
     * <p>A prompt that begins like an earlier sequence, still held, takes over its cache.
     */
    @Override
    public ChunkedPrefill startPrefill(int[] prompt, int chunkTokens) {
        model.requireOpen();
        checkPrompt(prompt);
        if (chunkTokens < 1) {
            throw new IllegalArgumentException(
                    "A prompt cannot be computed "
                            + chunkTokens
                            + " tokens at a time; give at least 1.");
        }
        cache.requireRoom(prompt.length);
        int[] copy = prompt.clone();
        return new LlamaPrefill(model, cache, cache.sequenceFor(copy), copy, chunkTokens);
    }

    /**
     * Appends tokens to sequences of the cache and computes what follows each of them. One token to
     * a sequence that is not empty is decoded; any other run is computed as a prompt is.
     *
     * @param owner the manager that the result is attached to
     * @param sequences sequences of {@link #cache}, each of them once
     * @param tokens the new tokens of each, one or more
     * @param allLogits whether logits of all new tokens are wanted, not only those of the last ones
     * @return logits, and hidden states of all new tokens
     * @throws ai.djl.kvquant.cache.CacheFullException if there is no room; the sequences keep the
     *     tokens that they had
     */
    public TokenStates append(
            NDManager owner, List<CacheSequence> sequences, List<int[]> tokens, boolean allLogits) {
        model.requireOpen();
        for (int i = 0; i < sequences.size(); ++i) {
            int past = sequences.get(i).length();
            if (past == 0) {
                checkPrompt(tokens.get(i));
            } else {
                checkContext(past, tokens.get(i));
            }
        }
        return new LlamaAppend(model, cache, sequences, tokens, allLogits).run(owner);
    }

    private void checkContext(int past, int[] tokens) {
        for (int id : tokens) {
            model.requireToken(id);
        }
        if (past + tokens.length > contextLength()) {
            throw new IllegalArgumentException(
                    "A sequence of "
                            + past
                            + " tokens can not take "
                            + tokens.length
                            + " more: the model's context is "
                            + contextLength()
                            + ". End it, or use a shorter prompt.");
        }
    }

    /**
     * Fills the cache with random keys and values instead of those of prompts, which takes a
     * fraction of the time: to measure how fast long sequences are decoded.
     *
     * @param rows the number of sequences
     * @param tokens the length of each
     * @return a batch to decode; the caller closes it
     * @throws ai.djl.kvquant.cache.CacheFullException if there is no room
     */
    public DecodingBatch randomBatch(int rows, int tokens) {
        model.requireOpen();
        if (rows < 1 || tokens < 1 || tokens > contextLength()) {
            throw new IllegalArgumentException(
                    rows
                            + " random sequences of "
                            + tokens
                            + " tokens can not be made; allowed: at least one of 1 to "
                            + contextLength()
                            + " tokens.");
        }
        return LlamaBatch.random(model, cache, rows, tokens);
    }

    private void checkPrompt(int[] prompt) {
        if (prompt.length == 0) {
            throw new IllegalArgumentException(
                    "A prompt has no tokens; give at least one, for example the BOS token.");
        }
        model.config().rope().checkLength(prompt.length);
        if (prompt.length > contextLength()) {
            throw new IllegalArgumentException(
                    "A prompt has "
                            + prompt.length
                            + " tokens, but the model's context is "
                            + contextLength()
                            + ". Shorten the prompt.");
        }
        for (int id : prompt) {
            model.requireToken(id);
        }
    }

    /**
     * Returns the cache.
     *
     * @return the cache
     */
    public KvCache cache() {
        return cache;
    }

    /**
     * Returns the weights' model.
     *
     * @return the model
     */
    public LlamaModel model() {
        return model;
    }

    /** Frees the cache; the weights stay. */
    @Override
    public void close() {
        cache.close();
    }
}
