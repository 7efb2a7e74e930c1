/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;

/**
 * The generation of one call whose sequences are decoded by a {@link BatchScheduler}. Text, stop
 * strings and listeners are the calling thread's, so that a slow listener holds up nobody else.
 */
final class ScheduledRun implements GenerationRun {

    private final BlockingQueue<ScheduledRequest.Event> events = new LinkedBlockingQueue<>();
    private final ScheduledSequences sequences;

    ScheduledRun(
            BatchScheduler scheduler,
            HuggingFaceTokenizer tokenizer,
            List<int[]> prompts,
            GenerationConfig config,
            GenerationListener listener,
            Cancellation cancellation) {
        sequences =
                new ScheduledSequences(
                        scheduler,
                        tokenizer,
                        prompts,
                        config,
                        listener,
                        cancellation::isCancelled,
                        events::add);
        sequences.submit(MaxWait.NONE);
    }

    @Override
    public boolean advance() {
        boolean reported = sequences.going() == 0;
        while (!reported) {
            reported = sequences.handle(take());
        }
        return sequences.going() > 0;
    }

    private ScheduledRequest.Event take() {
        try {
            return events.take();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException(
                    "The thread was interrupted while it waited for tokens; what it had asked for"
                            + " is cancelled.",
                    e);
        }
    }

    @Override
    public List<GenerationResult> results() {
        return sequences.results();
    }

    /** Ends what still goes on and waits until its pages are free. */
    @Override
    public void close() {
        sequences.abandon();
        boolean interrupted = false;
        while (sequences.going() > 0) {
            try {
                sequences.drop(events.take());
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }
}
