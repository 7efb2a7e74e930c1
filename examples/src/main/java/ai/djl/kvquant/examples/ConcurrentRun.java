/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.generate.BatchLimits;
import ai.djl.kvquant.generate.BatchScheduler;
import ai.djl.kvquant.generate.Cancellation;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.generate.LanguageModel;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.IntStream;

/** Requests with random prompts to one scheduler, a thread for each, and the clock. */
final class ConcurrentRun implements AutoCloseable {

    private static final int WARM_UP_TOKENS = 8;

    private final LanguageModel model;
    private final BatchScheduler scheduler;
    private final Generator generator;
    private final Shape shape;
    private final ExecutorService clients = Executors.newCachedThreadPool();

    /**
     * What is asked for.
     *
     * @param requests the number of requests
     * @param promptTokens tokens of a prompt
     * @param tokens new tokens of a request
     * @param arrivingTokens tokens of the prompt that comes later
     */
    record Shape(int requests, int promptTokens, int tokens, int arrivingTokens) {}

    /**
     * Times between the tokens of a stream, in milliseconds.
     *
     * @param median before the long prompt arrives
     * @param after the 99th percentile from its arrival on
     * @param during the 99th percentile while it is computed
     * @param longest the longest from its arrival on
     */
    record Gaps(double median, double after, double during, double longest) {

        static final Gaps NONE = new Gaps(Double.NaN, Double.NaN, Double.NaN, Double.NaN);
    }

    /**
     * What was measured of one cache.
     *
     * @param dtype the kv_cache_dtype
     * @param alone tokens per second of requests one after the other
     * @param together tokens per second of all requests at a time
     * @param gaps of streams that a long prompt joins
     */
    record Figures(String dtype, double alone, double together, Gaps gaps) {}

    ConcurrentRun(LanguageModel model, BatchLimits limits, Shape shape) {
        this.model = model;
        this.shape = shape;
        scheduler = new BatchScheduler(model, limits);
        generator = new Generator(scheduler, null);
        generate(randomPrompt(shape.promptTokens, -1), WARM_UP_TOKENS);
    }

    double oneAfterTheOther() {
        long start = System.nanoTime();
        for (int i = 0; i < shape.requests; ++i) {
            generate(prompt(i), shape.tokens);
        }
        return rate(start);
    }

    double together() {
        long start = System.nanoTime();
        List<Future<?>> futures = new ArrayList<>();
        for (int i = 0; i < shape.requests; ++i) {
            int[] prompt = prompt(i);
            futures.add(clients.submit(() -> generate(prompt, shape.tokens)));
        }
        futures.forEach(ConcurrentRun::await);
        return rate(start);
    }

    private double rate(long start) {
        return 1e9 * shape.requests * shape.tokens / (System.nanoTime() - start);
    }

    /** The long prompt arrives when each stream has a quarter of its tokens. */
    Gaps gaps() {
        CountDownLatch quarter = new CountDownLatch(shape.requests);
        List<List<Long>> times = new ArrayList<>();
        List<Future<?>> streams = new ArrayList<>();
        for (int i = 0; i < shape.requests; ++i) {
            List<Long> stream = new ArrayList<>();
            times.add(stream);
            int[] prompt = prompt(i);
            streams.add(clients.submit(() -> stream(prompt, stream, quarter)));
        }
        try {
            quarter.await();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException("Interrupted while streams ran.", e);
        }
        long arrival = System.nanoTime();
        generate(randomPrompt(shape.arrivingTokens, -2), 1);
        long computed = System.nanoTime();
        streams.forEach(ConcurrentRun::await);
        return new Gaps(
                percentile(between(times, Long.MIN_VALUE, arrival), 0.5),
                percentile(between(times, arrival, Long.MAX_VALUE), 0.99),
                percentile(between(times, arrival, computed), 0.99),
                percentile(between(times, arrival, Long.MAX_VALUE), 1));
    }

    private void stream(int[] prompt, List<Long> times, CountDownLatch quarter) {
        try {
            generator.generate(
                    List.of(prompt),
                    config(shape.tokens),
                    token -> {
                        times.add(System.nanoTime());
                        if (times.size() == shape.tokens / 4) {
                            quarter.countDown();
                        }
                        return true;
                    },
                    new Cancellation());
        } finally {
            if (times.size() < shape.tokens / 4) {
                quarter.countDown();
            }
        }
    }

    /** Gaps in milliseconds that end between two times. */
    private static double[] between(List<List<Long>> streams, long from, long to) {
        return streams.stream()
                .flatMapToDouble(
                        times ->
                                IntStream.range(1, times.size())
                                        .filter(i -> times.get(i) > from && times.get(i) <= to)
                                        .mapToDouble(i -> (times.get(i) - times.get(i - 1)) / 1e6))
                .toArray();
    }

    /** The least value that a share of all does not exceed; NaN of none. */
    static double percentile(double[] values, double share) {
        if (values.length == 0) {
            return Double.NaN;
        }
        double[] sorted = values.clone();
        Arrays.sort(sorted);
        return sorted[Math.max(0, (int) Math.ceil(share * sorted.length) - 1)];
    }

    private void generate(int[] prompt, int tokens) {
        generator.generate(List.of(prompt), config(tokens));
    }

    private static GenerationConfig config(int tokens) {
        return GenerationConfig.builder().optMaxNewTokens(tokens).optIgnoreEos(true).build();
    }

    private int[] prompt(int request) {
        return randomPrompt(shape.promptTokens, request);
    }

    private int[] randomPrompt(int length, int seed) {
        return new Random(seed).ints(length, 0, model.vocabularySize()).toArray();
    }

    private static void await(Future<?> future) {
        try {
            future.get();
        } catch (ExecutionException e) {
            if (e.getCause() instanceof RuntimeException cause) {
                throw cause;
            }
            throw new IllegalStateException(e.getCause());
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException("Interrupted while requests ran.", e);
        }
    }

    @Override
    public void close() {
        clients.shutdownNow();
        scheduler.close();
    }
}
