/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.kvquant.cache.CacheFullException;
import java.util.Arrays;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;

/**
 * One prompt on its way through a {@link BatchScheduler}: the tokens chosen for it so far, and how
 * it ends. Used by the scheduler's thread, except {@link #abandon}.
 *
 * <p>Its tokens outlive its KV cache: a request that had to give up its pages is prefilled anew and
 * fed the tokens it has, one a step as before, so that it goes on exactly.
 */
final class ScheduledRequest {

    private final int[] prompt;
    private final GeneratingSequence sequence;
    private final GenerationConfig config;
    private final BooleanSupplier cancelled;
    private final Consumer<Event> events;
    private volatile boolean abandoned;
    private MaxWait maxWait = MaxWait.NONE;
    private long arrival;
    private Sampler sampler;
    private int[] tokens = new int[16];
    private int size;
    private int fed;
    private Outcome outcome;

    /** What the thread that waits for a request hears of it. */
    sealed interface Event permits Chosen, Ended {}

    /** A token. */
    record Chosen(int index, Choice choice) implements Event {}

    /** The end, after which no pages are held. */
    record Ended(int index, Outcome outcome, CacheUsage usage) implements Event {}

    /**
     * How a request ended; the reason is null if its tokens say why, or if an error ended it.
     *
     * @param retryable whether it may get further if it is asked again
     */
    record Outcome(FinishReason reason, String message, boolean retryable, Throwable error) {}

    ScheduledRequest(
            int[] prompt,
            GeneratingSequence sequence,
            GenerationConfig config,
            BooleanSupplier cancelled,
            Consumer<Event> events) {
        this.prompt = prompt;
        this.sequence = sequence;
        this.config = config;
        this.cancelled = cancelled;
        this.events = events;
    }

    int[] prompt() {
        return prompt;
    }

    void arrive(long number) {
        arrival = number;
    }

    long arrival() {
        return arrival;
    }

    /** Nobody waits for more tokens; any thread may say so. */
    void abandon() {
        abandoned = true;
    }

    private boolean isCancelled() {
        return abandoned || cancelled.getAsBoolean();
    }

    /** Ends with an error if it has no token by then. */
    void limitWait(MaxWait limit) {
        maxWait = limit;
    }

    /**
     * Ends if nobody wants more of it, if asking for that fails, or if it has waited too long for
     * its first token.
     */
    boolean leave() {
        try {
            if (isCancelled()) {
                endFor(FinishReason.CANCELLED);
            } else if (size == 0 && maxWait.isOver()) {
                fail(maxWait.error());
            }
        } catch (RuntimeException | Error e) {
            fail(e);
        }
        return isEnding();
    }

    boolean hasTokens() {
        return size > 0;
    }

    /** Whether the token that follows what the cache holds was chosen before. */
    boolean isReplaying() {
        return fed < size;
    }

    int nextToken() {
        return tokens[fed];
    }

    /** The next token is in the cache. */
    void stepped() {
        ++fed;
    }

    /** Nothing is in the cache any more. */
    void rewind() {
        fed = 0;
    }

    /** Whether its next token is to be chosen now. */
    boolean isChoosing() {
        return !isReplaying() && !isEnding();
    }

    boolean isPlainGreedy() {
        return config.isPlainGreedy();
    }

    /** Chooses the next token, that of a row; an error ends this request only. */
    void choose(NextTokens next, int row) {
        try {
            Choice choice = next.choose(row, sequence, this::sampler);
            if (size == tokens.length) {
                tokens = Arrays.copyOf(tokens, 2 * size);
            }
            tokens[size++] = choice.token();
            events.accept(new Chosen(sequence.index(), choice));
            if (sequence.endsWith(choice.token(), size)) {
                endFor(null);
            }
        } catch (RuntimeException | Error e) {
            fail(e);
        }
    }

    private Sampler sampler(int vocabularySize) {
        if (sampler == null) {
            sampler = new Sampler(config, vocabularySize);
        }
        return sampler;
    }

    private void endFor(FinishReason reason) {
        end(new Outcome(reason, "", false, null));
    }

    /** There is no room for more tokens. */
    void end(CacheFullException full) {
        FinishReason reason = FinishReason.CACHE_FULL;
        end(new Outcome(reason, full.getMessage(), full.fitsAlone(), null));
    }

    void fail(Throwable error) {
        end(new Outcome(null, "", false, error));
    }

    /** What ends it first counts. */
    private void end(Outcome end) {
        outcome = outcome == null ? end : outcome;
    }

    boolean isEnding() {
        return outcome != null;
    }

    /** Tells who waits how it ended. */
    void report(CacheUsage usage) {
        sampler = null;
        events.accept(new Ended(sequence.index(), outcome, usage));
    }
}
