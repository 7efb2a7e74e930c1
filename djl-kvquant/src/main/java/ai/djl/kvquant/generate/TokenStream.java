/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.util.ArrayDeque;
import java.util.Iterator;
import java.util.NoSuchElementException;

/**
 * The tokens of one sequence, generated as they are asked for.
 *
 * <p>Closing it early ends the generation and releases its KV cache. Used by one thread at a time,
 * except {@link #cancel}.
 *
 * <pre>
 * try (TokenStream tokens = generator.stream(prompt, config)) {
 *     while (tokens.hasNext()) {
 *         System.out.print(tokens.next().text());
 *     }
 *     System.out.print(tokens.remainder());
 * }
 * </pre>
 */
public final class TokenStream implements Iterator<GeneratedToken>, AutoCloseable {

    private final GenerationRun loop;
    private final Queue queue;
    private final Cancellation cancellation;
    private boolean closed;

    TokenStream(GenerationRun loop, Queue queue, Cancellation cancellation) {
        this.loop = loop;
        this.queue = queue;
        this.cancellation = cancellation;
    }

    /**
     * Returns whether there is another token, which generates it if need be.
     *
     * @return whether there is another token
     * @throws ai.djl.kvquant.cache.CacheFullException if the prompt does not fit into the KV cache
     */
    @Override
    public boolean hasNext() {
        if (queue.tokens.isEmpty() && queue.result == null && !closed) {
            advance();
        }
        return !queue.tokens.isEmpty();
    }

    /**
     * Returns the next token.
     *
     * @return the next token
     * @throws NoSuchElementException if the sequence has ended
     */
    @Override
    public GeneratedToken next() {
        if (!hasNext()) {
            throw new NoSuchElementException("The sequence has ended.");
        }
        return queue.tokens.remove();
    }

    /**
     * Returns the text that no token's piece carried, once the sequence has ended.
     *
     * @return the text; empty unless the sequence was cut short within a character or a possible
     *     stop string
     * @throws IllegalStateException if the sequence has not ended
     */
    public String remainder() {
        result();
        return queue.remainder;
    }

    /**
     * Returns the whole result, once the sequence has ended.
     *
     * @return the result
     * @throws IllegalStateException if the sequence has not ended
     */
    public GenerationResult result() {
        if (queue.result == null) {
            throw new IllegalStateException(
                    "The sequence has not ended; take its tokens until hasNext() is false, or"
                            + " cancel it first.");
        }
        return queue.result;
    }

    /** Ends the sequence before its next token, from any thread. */
    public void cancel() {
        cancellation.cancel();
    }

    /** Releases the KV cache; tokens that were not taken are dropped. */
    @Override
    public void close() {
        if (!closed) {
            closed = true;
            queue.tokens.clear();
            loop.close();
        }
    }

    private void advance() {
        boolean running = false;
        try {
            running = loop.advance();
        } finally {
            if (!running) {
                loop.close();
            }
        }
    }

    /** Collects what the loop reports. */
    static final class Queue implements GenerationListener {

        private final ArrayDeque<GeneratedToken> tokens = new ArrayDeque<>();
        private GenerationResult result;
        private String remainder = "";

        @Override
        public boolean onToken(GeneratedToken token) {
            return tokens.add(token);
        }

        @Override
        public void onFinish(int sequence, String rest, GenerationResult finished) {
            remainder = rest;
            result = finished;
        }
    }
}
