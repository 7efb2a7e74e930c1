/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.kvquant.cache.CacheFullException;
import java.util.ArrayList;
import java.util.List;

/**
 * What a {@link BatchScheduler}'s thread does: between two decoding steps it computes some tokens
 * of the next prompt, and makes room when the KV cache is full.
 *
 * <p>Who came first goes first. When a step finds no room, the youngest that holds pages gives way:
 * a prompt in the making is put back and starts over, unless the cache still holds its beginning; a
 * running request is parked, which keeps its pages, and if that is not enough is put back, too.
 * Then nobody is let in until a request ends.
 */
final class BatchWorker {

    /** Steps of running requests into which the work of a full chunk of a prompt is divided. */
    private static final int STEPS_OF_CHUNK = 6;

    private final BatchScheduler scheduler;
    private final LanguageModel model;
    private final BatchLimits limits;
    private final RunningBatch running;
    private Admission admission;
    private Parked parked;
    private boolean blocked;

    /** A prompt in the making. */
    private record Admission(ScheduledRequest request, ChunkedPrefill prefill) {}

    /** A request that keeps its pages but is not decoded. */
    private record Parked(ScheduledRequest request, DecodingBatch batch) {}

    BatchWorker(BatchScheduler scheduler) {
        this.scheduler = scheduler;
        model = scheduler.model();
        limits = scheduler.limits();
        running = new RunningBatch(model.vocabularySize());
    }

    boolean isIdle() {
        return running.isEmpty() && admission == null && parked == null;
    }

    /** Lets in who may, then gives each running request a token. */
    void advance() {
        try {
            endLeaving();
            admit();
            step();
        } catch (RuntimeException | Error e) {
            failAll(e);
        }
    }

    private void endLeaving() {
        scheduler.removeLeaving().forEach(this::reportAlone);
        if (admission != null && admission.request.leave()) {
            reportAlone(takeAdmission());
        }
        if (parked != null && parked.request.leave()) {
            reportAlone(takeParked());
        }
        for (ScheduledRequest request : running.requests()) {
            request.leave();
        }
        dropEnding();
    }

    /** One that has ended and holds no pages. */
    private void reportAlone(ScheduledRequest request) {
        request.report(null);
        blocked = false;
    }

    private void admit() {
        // Where nothing runs, nothing ends that a waiting request could be blocked by.
        blocked &= !running.isEmpty();
        int share = running.isEmpty() ? 1 : STEPS_OF_CHUNK;
        int whole = Math.max(1, limits.prefillTokens() / share);
        int budget = whole;
        while (!blocked) {
            if (parked != null) {
                Parked resumed = parked;
                parked = null;
                running.add(resumed.request, resumed.batch);
            } else if (admission != null || startNext()) {
                int tokens = Math.min(limits.prefillTokens(), admission.prefill.remaining());
                if (budget < whole && tokens > budget) {
                    return;
                }
                budget -= prefill(budget);
            } else {
                return;
            }
        }
    }

    private boolean startNext() {
        while (running.size() < limits.maxRunning()) {
            ScheduledRequest next = scheduler.poll();
            if (next == null) {
                return false;
            }
            try {
                int tokens = limits.prefillTokens();
                admission = new Admission(next, model.startPrefill(next.prompt(), tokens));
                return true;
            } catch (RuntimeException | Error e) {
                fail(next, e);
            }
        }
        return false;
    }

    /** Computes some of the prompt in the making; returns how much of the budget that took. */
    private int prefill(int budget) {
        int done = 0;
        try {
            done = admission.prefill.advance(budget);
            if (admission.prefill.remaining() == 0) {
                join();
            }
        } catch (CacheFullException e) {
            if (!running.isEmpty()) {
                blocked = true;
                return done;
            }
            ScheduledRequest request = takeAdmission();
            if (request.hasTokens()) {
                request.end(e);
                reportAlone(request);
            } else {
                fail(request, e);
            }
        } catch (RuntimeException | Error e) {
            fail(takeAdmission(), e);
        }
        return done;
    }

    /** The prompt is computed: its first token, and into the batch. */
    private void join() {
        ScheduledRequest request = admission.request;
        RunningBatch alone = new RunningBatch(model.vocabularySize());
        DecodingBatch batch = admission.prefill.finish();
        alone.add(request, batch);
        admission = null;
        try {
            alone.choose();
            if (request.isEnding()) {
                CacheUsage usage = batch.usage();
                batch.close();
                request.report(usage);
            } else {
                running.add(request, batch);
            }
        } catch (RuntimeException | Error e) {
            close(batch::close, request);
            fail(request, e);
        }
    }

    private void step() {
        if (running.isEmpty()) {
            return;
        }
        try {
            stepWithRoom();
        } catch (CacheFullException e) {
            running.requests().forEach(r -> r.end(e));
        }
        dropEnding();
    }

    private void stepWithRoom() {
        boolean stepped = false;
        while (!stepped) {
            try {
                running.step();
                stepped = true;
            } catch (CacheFullException e) {
                if (!makeRoom()) {
                    throw e;
                }
            } catch (RuntimeException | Error e) {
                running.stepOneByOne();
                stepped = true;
            }
        }
        running.choose();
    }

    /** The youngest gives way; false if there is only one that holds pages. */
    private boolean makeRoom() {
        blocked = true;
        if (admission != null) {
            scheduler.putBack(takeAdmission());
        } else if (parked != null) {
            scheduler.putBack(takeParked());
        } else if (running.size() > 1) {
            ScheduledRequest youngest = running.youngest();
            parked = new Parked(youngest, running.take(youngest));
        } else {
            return false;
        }
        return true;
    }

    private ScheduledRequest takeAdmission() {
        Admission taken = admission;
        admission = null;
        close(taken.prefill::close, taken.request);
        return taken.request;
    }

    /** Frees what a request holds; an error ends it. */
    private static void close(Runnable freeing, ScheduledRequest request) {
        try {
            freeing.run();
        } catch (RuntimeException | Error e) {
            request.fail(e);
        }
    }

    private ScheduledRequest takeParked() {
        Parked taken = parked;
        parked = null;
        close(taken.batch::close, taken.request);
        taken.request.rewind();
        return taken.request;
    }

    private void dropEnding() {
        List<ScheduledRequest> ending =
                running.requests().stream().filter(ScheduledRequest::isEnding).toList();
        if (!ending.isEmpty()) {
            CacheUsage usage = running.usage();
            running.dropEnding();
            ending.forEach(request -> request.report(usage));
            blocked = false;
        }
    }

    private void fail(ScheduledRequest request, Throwable error) {
        request.fail(error);
        reportAlone(request);
    }

    /** Ends all that hold pages. */
    void failAll(Throwable error) {
        List<ScheduledRequest> failing = new ArrayList<>(running.requests());
        try {
            running.close();
        } catch (RuntimeException | Error e) {
            // Callers hear of what went wrong first.
            if (e != error) {
                error.addSuppressed(e);
            }
        }
        if (admission != null) {
            failing.add(takeAdmission());
        }
        if (parked != null) {
            failing.add(takeParked());
        }
        failing.forEach(request -> fail(request, error));
    }
}
