/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.function.BiConsumer;
import java.util.function.Supplier;

/**
 * Several measurements of the same kind, each used by a thread of its own, that share their work.
 *
 * @param <M> the measurement
 */
final class Jobs<M extends AutoCloseable> implements AutoCloseable {

    /** Threads of one operator; DJL reads it when its engine starts. */
    private static final String OPERATOR_THREADS = "ai.djl.pytorch.num_threads";

    private final List<M> measurements = new ArrayList<>();

    private Jobs() {}

    /** Before the engine starts: lets so many jobs have an equal part of the processors. */
    static void shareProcessors(int jobs) {
        boolean chosen =
                System.getProperty(OPERATOR_THREADS) != null
                        || System.getenv("OMP_NUM_THREADS") != null;
        if (jobs > 1 && !chosen) {
            int threads = Math.max(1, Runtime.getRuntime().availableProcessors() / jobs);
            System.setProperty(OPERATOR_THREADS, Integer.toString(threads));
        }
    }

    /** Makes as many measurements as there are jobs. */
    static <M extends AutoCloseable> Jobs<M> of(int jobs, Supplier<M> measurement) {
        Jobs<M> made = new Jobs<>();
        try {
            for (int i = 0; i < jobs; ++i) {
                made.measurements.add(measurement.get());
            }
        } catch (RuntimeException | Error e) {
            made.close();
            throw e;
        }
        return made;
    }

    /**
     * Gives each measurement every so-many-th item.
     *
     * @param done is told of each item, by one thread at a time
     */
    <T> void run(List<T> items, BiConsumer<M, T> measure, Runnable done) {
        ExecutorService threads = Executors.newFixedThreadPool(measurements.size());
        try {
            List<Future<?>> parts = new ArrayList<>();
            for (int i = 0; i < measurements.size(); ++i) {
                int first = i;
                parts.add(threads.submit(() -> part(first, items, measure, done)));
            }
            parts.forEach(Jobs::await);
        } finally {
            stop(threads);
        }
    }

    /** Nobody may use a measurement any more when this returns: it may be closed next. */
    private static void stop(ExecutorService threads) {
        threads.shutdownNow();
        boolean interrupted = false;
        while (!threads.isTerminated()) {
            try {
                threads.awaitTermination(1, TimeUnit.MINUTES);
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    private <T> void part(int first, List<T> items, BiConsumer<M, T> measure, Runnable done) {
        for (int i = first; i < items.size(); i += measurements.size()) {
            if (Thread.currentThread().isInterrupted()) {
                return;
            }
            measure.accept(measurements.get(first), items.get(i));
            synchronized (this) {
                done.run();
            }
        }
    }

    private static void await(Future<?> part) {
        try {
            part.get();
        } catch (ExecutionException e) {
            if (e.getCause() instanceof Error error) {
                throw error;
            }
            throw (RuntimeException) e.getCause();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException("The measurement was interrupted.", e);
        }
    }

    /** Adds all measurements to the first one. */
    M merge(BiConsumer<M, M> add) {
        M all = measurements.get(0);
        measurements.stream().skip(1).forEach(each -> add.accept(all, each));
        return all;
    }

    @Override
    public void close() {
        for (M each : measurements) {
            try {
                each.close();
            } catch (RuntimeException e) {
                throw e;
            } catch (Exception e) {
                throw new IllegalStateException(e);
            }
        }
    }
}
