/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.time.Duration;
import java.util.List;
import java.util.function.BooleanSupplier;

/** The generation of one call that did not wait: its listener hears of it from another thread. */
final class SubmittedRun {

    private final BatchScheduler scheduler;
    private final SubmissionListener listener;
    private final ScheduledSequences sequences;
    private boolean failed;

    SubmittedRun(
            BatchScheduler scheduler,
            HuggingFaceTokenizer tokenizer,
            List<int[]> prompts,
            GenerationConfig config,
            SubmissionListener listener,
            BooleanSupplier cancelled) {
        this.scheduler = scheduler;
        this.listener = listener;
        sequences =
                new ScheduledSequences(
                        scheduler, tokenizer, prompts, config, listener, cancelled, this::onEvent);
    }

    void submit(Duration maxWait) {
        sequences.submit(maxWait == null ? MaxWait.NONE : MaxWait.of(maxWait));
        scheduler.deliverLater(this::pulse);
    }

    private void pulse() {
        if (failed || sequences.going() == 0) {
            return;
        }
        try {
            listener.onPulse();
            scheduler.deliverLater(this::pulse);
        } catch (RuntimeException | Error e) {
            fail(e);
        }
    }

    private void onEvent(ScheduledRequest.Event event) {
        scheduler.deliver(() -> handle(event));
    }

    private void handle(ScheduledRequest.Event event) {
        if (failed) {
            return;
        }
        try {
            sequences.handle(event);
        } catch (RuntimeException | Error e) {
            fail(e);
        }
    }

    private void fail(Throwable error) {
        failed = true;
        sequences.abandon();
        listener.onError(error);
    }
}
