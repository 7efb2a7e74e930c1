/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;

/**
 * The generation of one call whose sequences are decoded by a {@link BatchScheduler}. Text, stop
 * strings and listeners are the calling thread's, so that a slow listener holds up nobody else; the
 * scheduler may be some tokens ahead, which are dropped when the text ends before them.
 */
final class ScheduledRun implements GenerationRun {

    private final BlockingQueue<ScheduledRequest.Event> events = new LinkedBlockingQueue<>();
    private final BatchScheduler scheduler;
    private final List<GeneratingSequence> sequences;
    private final List<ScheduledRequest> requests = new ArrayList<>();
    private final GenerationListener listener;
    private final GenerationResult[] results;
    private final String[] remainders;
    private final long startNanos = System.nanoTime();
    private int going;

    ScheduledRun(
            BatchScheduler scheduler,
            HuggingFaceTokenizer tokenizer,
            List<int[]> prompts,
            GenerationConfig config,
            GenerationListener listener,
            Cancellation cancellation) {
        this.scheduler = scheduler;
        this.listener = listener;
        results = new GenerationResult[prompts.size()];
        remainders = new String[prompts.size()];
        sequences = GeneratingSequence.of(prompts, scheduler.model(), config, tokenizer);
        for (int i = 0; i < prompts.size(); i++) {
            requests.add(
                    new ScheduledRequest(
                            prompts.get(i), sequences.get(i), config, cancellation, events));
        }
        scheduler.submit(requests);
        going = requests.size();
    }

    @Override
    public boolean advance() {
        boolean reported = going == 0;
        while (!reported) {
            reported = handle(take());
        }
        return going > 0;
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

    /** Returns whether there was anything to report. */
    private boolean handle(ScheduledRequest.Event event) {
        if (event instanceof ScheduledRequest.Chosen chosen) {
            return !sequences.get(chosen.index()).finished() && accept(chosen);
        }
        finish((ScheduledRequest.Ended) event);
        return true;
    }

    private boolean accept(ScheduledRequest.Chosen chosen) {
        // The tokenizer may be gone with the model.
        scheduler.requireOpen();
        GeneratingSequence sequence = sequences.get(chosen.index());
        GeneratedToken token = sequence.accept(chosen.choice());
        boolean goOn = listener.onToken(token);
        if (!goOn && !sequence.finished()) {
            remainders[chosen.index()] = sequence.end(FinishReason.CANCELLED);
        }
        if (sequence.finished()) {
            requests.get(chosen.index()).abandon();
        }
        return true;
    }

    private void finish(ScheduledRequest.Ended ended) {
        --going;
        int index = ended.index();
        GeneratingSequence sequence = sequences.get(index);
        ScheduledRequest.Outcome outcome = ended.outcome();
        if (!sequence.finished()) {
            throwIfFailed(outcome.error());
            remainders[index] = sequence.end(outcome.reason());
        }
        String remainder = remainders[index] == null ? "" : remainders[index];
        results[index] = sequence.result(startNanos, outcome.message(), ended.usage());
        listener.onFinish(index, remainder, results[index]);
    }

    private static void throwIfFailed(Throwable error) {
        if (error instanceof RuntimeException exception) {
            throw exception;
        } else if (error instanceof Error serious) {
            throw serious;
        }
    }

    @Override
    public List<GenerationResult> results() {
        return List.of(results);
    }

    /** Ends what still goes on and waits until its pages are free. */
    @Override
    public void close() {
        requests.forEach(ScheduledRequest::abandon);
        boolean interrupted = false;
        while (going > 0) {
            try {
                going -= events.take() instanceof ScheduledRequest.Ended ? 1 : 0;
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }
}
