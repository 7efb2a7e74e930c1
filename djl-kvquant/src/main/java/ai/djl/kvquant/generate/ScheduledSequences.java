/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.util.ArrayList;
import java.util.List;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;

/**
 * The sequences of one call that a {@link BatchScheduler} decodes: makes text of the tokens chosen
 * for them and tells a listener. The scheduler may be some tokens ahead, which are dropped when the
 * text ends before them.
 */
final class ScheduledSequences {

    private final BatchScheduler scheduler;
    private final List<GeneratingSequence> sequences;
    private final List<ScheduledRequest> requests = new ArrayList<>();
    private final GenerationListener listener;
    private final GenerationResult[] results;
    private final String[] remainders;
    private final long startNanos = System.nanoTime();
    private int going;

    ScheduledSequences(
            BatchScheduler scheduler,
            HuggingFaceTokenizer tokenizer,
            List<int[]> prompts,
            GenerationConfig config,
            GenerationListener listener,
            BooleanSupplier cancelled,
            Consumer<ScheduledRequest.Event> events) {
        this.scheduler = scheduler;
        this.listener = listener;
        results = new GenerationResult[prompts.size()];
        remainders = new String[prompts.size()];
        sequences = GeneratingSequence.of(prompts, scheduler.model(), config, tokenizer);
        for (int i = 0; i < prompts.size(); i++) {
            requests.add(
                    new ScheduledRequest(
                            prompts.get(i), sequences.get(i), config, cancelled, events));
        }
    }

    /** Sends the requests on their way; events come from now on. */
    void submit(MaxWait maxWait) {
        requests.forEach(request -> request.limitWait(maxWait));
        going = requests.size();
        scheduler.submit(requests);
    }

    /** How many sequences have not ended. */
    int going() {
        return going;
    }

    List<GenerationResult> results() {
        return List.of(results);
    }

    void abandon() {
        requests.forEach(ScheduledRequest::abandon);
    }

    /** Counts an end that nobody is told of. */
    void drop(ScheduledRequest.Event event) {
        going -= event instanceof ScheduledRequest.Ended ? 1 : 0;
    }

    /** Returns whether there was anything to report; throws what ended a request. */
    boolean handle(ScheduledRequest.Event event) {
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
        results[index] =
                sequence.result(startNanos, outcome.message(), outcome.retryable(), ended.usage());
        listener.onFinish(index, remainder, results[index]);
    }

    private static void throwIfFailed(Throwable error) {
        if (error instanceof RuntimeException exception) {
            throw exception;
        } else if (error instanceof Error serious) {
            throw serious;
        }
    }
}
