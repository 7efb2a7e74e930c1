/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.PriorityQueue;

/**
 * Decodes what many threads ask of one model together (continuous batching); thread-safe.
 *
 * <p>Requests join and leave the running batch at any step, in the order in which they came. Long
 * prompts are computed in parts between the steps of those that run. When the KV cache is full, the
 * youngest requests wait; what was generated for them is kept. A request's tokens are those that it
 * would get alone with the same {@link BatchLimits#prefillTokens}.
 *
 * <p>A {@link Generator} made with a scheduler sends all its calls through it. The scheduler has a
 * thread while there are requests.
 */
public final class BatchScheduler implements AutoCloseable {

    private final LanguageModel model;
    private final BatchLimits limits;
    private final PriorityQueue<ScheduledRequest> waiting =
            new PriorityQueue<>(Comparator.comparingLong(ScheduledRequest::arrival));
    private final Deliveries deliveries;
    private long arrivals;
    private Thread thread;
    private volatile boolean closed;

    /**
     * Creates a scheduler.
     *
     * @param model the model; it stays the caller's and is closed after the scheduler
     * @param limits how much is done at once
     */
    public BatchScheduler(LanguageModel model, BatchLimits limits) {
        this(model, limits, new Deliveries());
    }

    BatchScheduler(LanguageModel model, BatchLimits limits, Deliveries deliveries) {
        this.model = model;
        this.limits = limits;
        this.deliveries = deliveries;
    }

    LanguageModel model() {
        return model;
    }

    BatchLimits limits() {
        return limits;
    }

    void requireOpen() {
        if (closed) {
            throw closedException();
        }
    }

    synchronized void submit(List<ScheduledRequest> requests) {
        requireOpen();
        if (requests.size() > limits.maxWaiting()) {
            throw new IllegalArgumentException(
                    requests.size()
                            + " prompts were given at once, but at most "
                            + limits.maxWaiting()
                            + " may wait for the model. Give fewer at a time, or raise the"
                            + " scheduler's maxWaiting (option max_waiting_requests).");
        }
        if (waiting.size() + requests.size() > limits.maxWaiting()) {
            throw new TooManyRequestsException(
                    waiting.size()
                            + " requests wait for the model, and "
                            + requests.size()
                            + " more would exceed the limit of "
                            + limits.maxWaiting()
                            + ". Try again later, or raise the scheduler's maxWaiting (option"
                            + " max_waiting_requests).");
        }
        for (ScheduledRequest request : requests) {
            request.arrive(arrivals++);
            waiting.add(request);
        }
        if (thread == null && !requests.isEmpty()) {
            thread = new Thread(this::run, "kvquant-batch");
            thread.setDaemon(true);
            thread.start();
        }
    }

    private void run() {
        BatchWorker worker = new BatchWorker(this);
        while (goesOn(worker)) {
            worker.advance();
        }
    }

    private synchronized boolean goesOn(BatchWorker worker) {
        if (closed) {
            worker.failAll(closedException());
            for (ScheduledRequest request : waiting) {
                request.fail(closedException());
                request.report(null);
            }
            waiting.clear();
        }
        if (waiting.isEmpty() && worker.isIdle()) {
            thread = null;
            notifyAll();
            return false;
        }
        return true;
    }

    private static ModelClosedException closedException() {
        return new ModelClosedException(
                "The model was closed, which ended all requests to it; load it again.");
    }

    /** The request that has waited longest, or null. */
    synchronized ScheduledRequest poll() {
        return waiting.poll();
    }

    /** A request had to give up its pages; it keeps its place. */
    synchronized void putBack(ScheduledRequest request) {
        waiting.add(request);
    }

    /** Takes those away that nobody waits for any more. */
    synchronized List<ScheduledRequest> removeLeaving() {
        List<ScheduledRequest> leaving = new ArrayList<>();
        waiting.removeIf(request -> request.leave() && leaving.add(request));
        return leaving;
    }

    /** Runs what is to be told to listeners; in the order of the calls. */
    void deliver(Runnable delivery) {
        deliveries.run(delivery);
    }

    /** Runs it once a pulse has passed, unless the scheduler is closed by then. */
    void deliverLater(Runnable delivery) {
        deliveries.runLater(delivery);
    }

    /**
     * Ends all requests with an error that says so, and waits for the step in progress and until
     * listeners know; further calls do nothing.
     */
    @Override
    public void close() {
        endAll();
        deliveries.close();
    }

    private synchronized void endAll() {
        closed = true;
        boolean interrupted = false;
        while (thread != null) {
            try {
                wait();
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }
}
