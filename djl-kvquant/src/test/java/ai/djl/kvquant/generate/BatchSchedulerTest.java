/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.CacheFullException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Requests of many threads in one batch. The timeout ends what would hang; it measures nothing. */
@Timeout(value = 120, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
class BatchSchedulerTest {

    private static final int VOCABULARY = 50;

    private final ExecutorService threads = Executors.newCachedThreadPool();

    @AfterEach
    void endThreads() {
        threads.shutdownNow();
    }

    /** Each token depends on all before it, so that a row that is mixed up says something else. */
    private static FakeModel model(int capacity) {
        return new FakeModel(
                VOCABULARY,
                1000,
                capacity,
                tokens -> FakeModel.peak(VOCABULARY, Math.floorMod(tokens.hashCode(), VOCABULARY)));
    }

    private static GenerationConfig config(int tokens) {
        return GenerationConfig.builder().optMaxNewTokens(tokens).build();
    }

    private static int[] prompt(int length, int seed) {
        return new Random(seed).ints(length, 0, VOCABULARY).toArray();
    }

    private static int[] alone(int[] prompt, int tokens) {
        return generate(new Generator(model(100000)), prompt, tokens).tokens();
    }

    private static GenerationResult generate(Generator generator, int[] prompt, int tokens) {
        return generator.generate(List.of(prompt), config(tokens)).get(0);
    }

    private <T> List<Future<T>> start(List<Callable<T>> tasks) {
        return tasks.stream().map(threads::submit).toList();
    }

    private void requireEqualsAlone(BatchScheduler scheduler, int requests) throws Exception {
        Generator generator = new Generator(scheduler, null);
        List<Callable<GenerationResult>> tasks = new ArrayList<>();
        for (int i = 0; i < requests; i++) {
            int[] prompt = prompt(1 + 7 * i % 40, i);
            int count = 1 + 5 * i % 30;
            tasks.add(() -> generate(generator, prompt, count));
        }
        List<Future<GenerationResult>> futures = start(tasks);
        for (int i = 0; i < requests; i++) {
            GenerationResult result = futures.get(i).get();
            int[] expected = alone(prompt(1 + 7 * i % 40, i), 1 + 5 * i % 30);
            assertArrayEquals(expected, result.tokens(), "request " + i);
            assertEquals(FinishReason.LENGTH, result.finishReason());
        }
    }

    @ParameterizedTest
    @ValueSource(ints = {1, 2, 5, 16, 64})
    void everyRequestGetsWhatItWouldGetAlone(int maxRunning) throws Exception {
        FakeModel model = model(100000);
        BatchLimits limits = new BatchLimits(maxRunning, 64, 8);
        try (BatchScheduler scheduler = new BatchScheduler(model, limits)) {
            requireEqualsAlone(scheduler, 64);
            int widest =
                    model.calls().stream()
                            .filter(c -> c.startsWith("step "))
                            .mapToInt(c -> Integer.parseInt(c.substring(5)))
                            .max()
                            .orElseThrow();
            assertTrue(widest <= maxRunning && (maxRunning == 1 || widest > 1), "rows " + widest);
        }
        assertEquals(0, model.open());
    }

    /** So little room that requests are put back with tokens they have given out already. */
    @ParameterizedTest
    @ValueSource(ints = {75, 100, 150})
    void requestsThatGaveWayGoOnWhereTheyWere(int capacity) throws Exception {
        FakeModel model = model(capacity);
        try (BatchScheduler scheduler = new BatchScheduler(model, new BatchLimits(16, 64, 8))) {
            requireEqualsAlone(scheduler, 64);
        }
        int computed =
                model.calls().stream()
                        .filter(c -> c.startsWith("chunk "))
                        .mapToInt(c -> Integer.parseInt(c.substring(6)))
                        .sum();
        int prompts = IntStream.range(0, 64).map(i -> 1 + 7 * i % 40).sum();
        assertTrue(computed > prompts + 100, "hardly a prompt was computed again: " + computed);
        assertTrue(model.calls().stream().anyMatch(c -> c.startsWith("take ")), "nobody gave way");
        assertEquals(0, model.open());
    }

    @Test
    void oneRequestAloneFillsTheCacheAsWithoutScheduler() {
        FakeModel model = model(20);
        try (BatchScheduler scheduler = new BatchScheduler(model, BatchLimits.DEFAULT)) {
            Generator generator = new Generator(scheduler, null);
            GenerationResult result = generate(generator, prompt(15, 1), 30);
            assertEquals(FinishReason.CACHE_FULL, result.finishReason());
            assertEquals("KV cache is full: 20 tokens fit.", result.message());
            assertArrayEquals(alone(prompt(15, 1), 6), result.tokens());
            assertThrows(CacheFullException.class, () -> generate(generator, prompt(21, 1), 1));
            assertArrayEquals(
                    alone(prompt(15, 2), 3), generate(generator, prompt(15, 2), 3).tokens());
        }
        assertEquals(0, model.open());
    }

    /**
     * While one request runs, a long prompt is computed: never two parts without a step between.
     */
    @Test
    void aLongPromptIsComputedBetweenSteps() throws Exception {
        FakeModel model = model(100000);
        CountDownLatch running = new CountDownLatch(1);
        CountDownLatch submitted = new CountDownLatch(1);
        AtomicInteger steps = new AtomicInteger();
        model.onStep(
                () -> {
                    if (steps.incrementAndGet() == 3) {
                        running.countDown();
                        await(submitted);
                    }
                });
        try (BatchScheduler scheduler = new BatchScheduler(model, new BatchLimits(16, 64, 10))) {
            Generator generator = new Generator(scheduler, null);
            Future<GenerationResult> first =
                    threads.submit(() -> generate(generator, prompt(5, 1), 100));
            await(running);
            TokenStream second = generator.stream(prompt(405, 2), config(5));
            submitted.countDown();
            List<Integer> tokens = new ArrayList<>();
            second.forEachRemaining(token -> tokens.add(token.id()));
            second.close();
            assertArrayEquals(alone(prompt(405, 2), 5), tokens.stream().mapToInt(t -> t).toArray());
            assertArrayEquals(alone(prompt(5, 1), 100), first.get().tokens());
        }
        List<String> calls = model.calls();
        int from = calls.indexOf("chunk 10");
        assertEquals(40, calls.stream().filter("chunk 10"::equals).count());
        for (int i = 0; i < 40; i++) {
            assertEquals("chunk 10", calls.get(from + 2 * i));
            assertEquals("step 1", calls.get(from + 2 * i + 1));
        }
        assertEquals(List.of("chunk 5", "add 1", "step 2"), calls.subList(from + 80, from + 83));
    }

    private static void await(CountDownLatch latch) {
        try {
            assertTrue(latch.await(60, TimeUnit.SECONDS));
        } catch (InterruptedException e) {
            throw new AssertionError(e);
        }
    }

    /** Short prompts share what may be computed between two steps. */
    @Test
    void shortPromptsAreComputedTogether() {
        FakeModel model = model(100000);
        try (BatchScheduler scheduler = new BatchScheduler(model, new BatchLimits(16, 64, 10))) {
            List<int[]> prompts = List.of(prompt(4, 1), prompt(4, 2), prompt(4, 3));
            new Generator(scheduler, null).generate(prompts, config(3));
        }
        List<String> calls = model.calls();
        assertEquals(
                List.of("chunk 4", "chunk 4", "add 1", "step 2", "chunk 4", "add 1", "step 3"),
                calls.subList(0, 7));
    }

    @Test
    void firstComeFirstServed() {
        FakeModel model = model(100000);
        List<Integer> ends = new ArrayList<>();
        GenerationListener listener =
                new GenerationListener() {
                    @Override
                    public boolean onToken(GeneratedToken token) {
                        return true;
                    }

                    @Override
                    public void onFinish(int sequence, String rest, GenerationResult result) {
                        ends.add(sequence);
                    }
                };
        try (BatchScheduler scheduler = new BatchScheduler(model, new BatchLimits(1, 64, 10))) {
            List<int[]> prompts = new ArrayList<>();
            for (int i = 0; i < 8; i++) {
                prompts.add(prompt(80 - 10 * i, i));
            }
            new Generator(scheduler, null)
                    .generate(prompts, config(2), listener, new Cancellation());
        }
        assertEquals(List.of(0, 1, 2, 3, 4, 5, 6, 7), ends);
    }

    @Test
    void cancellationEndsOneRequestAndFreesItsPages() throws Exception {
        FakeModel model = model(100000);
        Cancellation cancellation = new Cancellation();
        try (BatchScheduler scheduler = new BatchScheduler(model, BatchLimits.DEFAULT)) {
            Generator generator = new Generator(scheduler, null);
            Future<GenerationResult> other =
                    threads.submit(() -> generate(generator, prompt(5, 1), 200));
            List<GeneratedToken> heard = new ArrayList<>();
            GenerationResult result =
                    generator
                            .generate(
                                    List.of(prompt(9, 2)),
                                    config(900),
                                    token -> {
                                        heard.add(token);
                                        if (heard.size() == 4) {
                                            cancellation.cancel();
                                        }
                                        return true;
                                    },
                                    cancellation)
                            .get(0);
            assertEquals(FinishReason.CANCELLED, result.finishReason());
            assertTrue(result.tokens().length >= 4 && result.tokens().length < 900);
            assertEquals(heard.size(), result.tokens().length);
            assertArrayEquals(alone(prompt(5, 1), 200), other.get().tokens());
            assertEquals(0, model.open());
        }
    }

    @Test
    void cancelledBeforeItsTurn() {
        FakeModel model = model(100000);
        Cancellation cancellation = new Cancellation();
        cancellation.cancel();
        try (BatchScheduler scheduler = new BatchScheduler(model, BatchLimits.DEFAULT)) {
            GenerationResult result =
                    new Generator(scheduler, null)
                            .generate(List.of(prompt(9, 2)), config(9), token -> true, cancellation)
                            .get(0);
            assertEquals(FinishReason.CANCELLED, result.finishReason());
            assertEquals(0, result.tokens().length);
        }
        assertEquals(List.of(), model.calls());
    }

    /** The scheduler may be ahead; the result has what the listener has heard. */
    @Test
    void aListenerThatSaysNoEndsItsSequenceAtThatToken() {
        FakeModel model = model(100000);
        try (BatchScheduler scheduler = new BatchScheduler(model, BatchLimits.DEFAULT)) {
            List<GenerationResult> results =
                    new Generator(scheduler, null)
                            .generate(
                                    List.of(prompt(3, 1), prompt(4, 2)),
                                    config(50),
                                    token -> token.sequence() == 1 || token.position() < 2,
                                    new Cancellation());
            assertArrayEquals(alone(prompt(3, 1), 3), results.get(0).tokens());
            assertEquals(FinishReason.CANCELLED, results.get(0).finishReason());
            assertArrayEquals(alone(prompt(4, 2), 50), results.get(1).tokens());
            assertEquals(FinishReason.LENGTH, results.get(1).finishReason());
        }
    }

    @Test
    void aListenerThatThrowsHurtsItsCallerOnly() throws Exception {
        FakeModel model = model(100000);
        IllegalStateException thrown = new IllegalStateException("the client has gone");
        try (BatchScheduler scheduler = new BatchScheduler(model, BatchLimits.DEFAULT)) {
            Generator generator = new Generator(scheduler, null);
            Future<GenerationResult> other =
                    threads.submit(() -> generate(generator, prompt(5, 1), 200));
            Exception heard =
                    assertThrows(
                            IllegalStateException.class,
                            () ->
                                    generator.generate(
                                            List.of(prompt(9, 2)),
                                            config(900),
                                            token -> {
                                                throw thrown;
                                            },
                                            new Cancellation()));
            assertSame(thrown, heard);
            assertArrayEquals(alone(prompt(5, 1), 200), other.get().tokens());
            assertEquals(0, model.open());
        }
    }

    @Test
    void logitsThatAreNotNumbersHurtTheirRequestOnly() throws Exception {
        FakeModel model =
                new FakeModel(
                        VOCABULARY,
                        1000,
                        1000,
                        t -> {
                            float[] row = FakeModel.peak(VOCABULARY, t.get(0));
                            row[3] = t.get(0) == 7 && t.size() > 4 ? Float.NaN : 0;
                            return row;
                        });
        try (BatchScheduler scheduler = new BatchScheduler(model, BatchLimits.DEFAULT)) {
            Generator generator = new Generator(scheduler, null);
            Future<GenerationResult> other =
                    threads.submit(() -> generate(generator, new int[] {8}, 100));
            assertThrows(
                    IllegalStateException.class, () -> generate(generator, new int[] {7}, 100));
            int[] eights = new int[100];
            Arrays.fill(eights, 8);
            assertArrayEquals(eights, other.get().tokens());
            assertEquals(0, model.open());
        }
    }

    @Test
    void closingEndsAllCallersWithOneError() throws Exception {
        FakeModel model = model(100000);
        CountDownLatch running = new CountDownLatch(2);
        model.onStep(running::countDown);
        BatchScheduler scheduler = new BatchScheduler(model, new BatchLimits(2, 64, 10));
        Generator generator = new Generator(scheduler, null);
        List<Callable<GenerationResult>> tasks = new ArrayList<>();
        for (int i = 0; i < 8; i++) {
            int[] prompt = prompt(5 + i, i);
            tasks.add(() -> generate(generator, prompt, 990));
        }
        model.onStep(
                () -> {
                    running.countDown();
                    Thread.yield();
                });
        List<Future<GenerationResult>> futures = start(tasks);
        await(running);
        scheduler.close();
        assertEquals(0, model.open());
        int ended = 0;
        for (Future<GenerationResult> future : futures) {
            try {
                future.get();
            } catch (ExecutionException e) {
                assertEquals(
                        "The model was closed, which ended all requests to it; load it again.",
                        e.getCause().getMessage());
                ended++;
            }
        }
        assertTrue(ended > 0);
        assertThrows(IllegalStateException.class, () -> generate(generator, prompt(1, 1), 1));
        scheduler.close();
    }

    @Test
    void refusesMoreThanMayWait() {
        try (BatchScheduler scheduler =
                new BatchScheduler(model(1000), new BatchLimits(1, 2, 10))) {
            Generator generator = new Generator(scheduler, null);
            List<int[]> prompts = List.of(prompt(1, 1), prompt(1, 2), prompt(1, 3));
            String message =
                    assertThrows(
                                    IllegalArgumentException.class,
                                    () -> generator.generate(prompts, config(1)))
                            .getMessage();
            assertTrue(message.startsWith("3 prompts were given at once, but at most 2"), message);
            assertEquals(2, generator.generate(prompts.subList(0, 2), config(1)).size());
            assertEquals(List.of(), generator.generate(List.of(), config(1)));
        }
        assertThrows(IllegalArgumentException.class, () -> new BatchLimits(0, 1, 1));
    }

    /** Sampling has random numbers of its own per sequence, whoever else is in the batch. */
    @Test
    void samplingIsThatOfTheRequestAlone() throws Exception {
        GenerationConfig sampling =
                GenerationConfig.builder()
                        .optMaxNewTokens(20)
                        .optTemperature(5)
                        .optSeed(7)
                        .optLogProbs(true)
                        .build();
        List<int[]> prompts = List.of(prompt(3, 1), prompt(3, 1), prompt(8, 2));
        List<GenerationResult> expected = new Generator(model(100000)).generate(prompts, sampling);
        assertFalse(Arrays.equals(expected.get(0).tokens(), expected.get(1).tokens()));
        try (BatchScheduler scheduler = new BatchScheduler(model(60), BatchLimits.DEFAULT)) {
            Generator generator = new Generator(scheduler, null);
            Future<GenerationResult> other =
                    threads.submit(() -> generate(generator, prompt(5, 1), 30));
            List<GenerationResult> results = generator.generate(prompts, sampling);
            for (int i = 0; i < prompts.size(); i++) {
                assertArrayEquals(expected.get(i).tokens(), results.get(i).tokens());
                assertEquals(expected.get(i).logProbs(), results.get(i).logProbs());
            }
            other.get();
        }
    }

    /** A step of all rows that fails is taken one by one: the one at fault ends, no other. */
    @Test
    void aStepThatFailsHurtsOneRequestOnly() throws Exception {
        FakeModel model = model(100000);
        int[] bad = {VOCABULARY - 1, VOCABULARY - 2, VOCABULARY - 3};
        model.failOn(
                row ->
                        row.size() > 10
                                && row.get(0) == bad[0]
                                && row.get(1) == bad[1]
                                && row.get(2) == bad[2]);
        try (BatchScheduler scheduler = new BatchScheduler(model, BatchLimits.DEFAULT)) {
            Generator generator = new Generator(scheduler, null);
            List<Callable<GenerationResult>> tasks = new ArrayList<>();
            for (int i = 0; i < 5; i++) {
                int[] prompt = prompt(5 + i, i);
                tasks.add(() -> generate(generator, prompt, 60));
            }
            tasks.add(() -> generate(generator, bad, 60));
            List<Future<GenerationResult>> futures = start(tasks);
            for (int i = 0; i < 5; i++) {
                int[] tokens = futures.get(i).get().tokens();
                assertArrayEquals(alone(prompt(5 + i, i), 60), tokens, "request " + i);
            }
            ExecutionException error =
                    assertThrows(ExecutionException.class, () -> futures.get(5).get());
            assertEquals("broken row", error.getCause().getMessage());
            assertEquals(0, model.open());
        }
    }

    /** The listener of one request waits until another request is done. */
    @Test
    void aSlowListenerHoldsUpNobodyElse() throws Exception {
        CountDownLatch otherIsDone = new CountDownLatch(1);
        try (BatchScheduler scheduler = new BatchScheduler(model(100000), BatchLimits.DEFAULT)) {
            Generator generator = new Generator(scheduler, null);
            Future<List<GenerationResult>> slow =
                    threads.submit(
                            () ->
                                    generator.generate(
                                            List.of(prompt(5, 1)),
                                            config(40),
                                            token -> {
                                                await(otherIsDone);
                                                return true;
                                            },
                                            new Cancellation()));
            generate(generator, prompt(5, 2), 100);
            otherIsDone.countDown();
            assertArrayEquals(alone(prompt(5, 1), 40), slow.get().get(0).tokens());
        }
    }

    @Test
    void anInterruptEndsTheCallOfItsThread() throws Exception {
        FakeModel model = model(100000);
        CountDownLatch running = new CountDownLatch(1);
        CountDownLatch interrupted = new CountDownLatch(1);
        model.onStep(
                () -> {
                    running.countDown();
                    await(interrupted);
                });
        try (BatchScheduler scheduler = new BatchScheduler(model, BatchLimits.DEFAULT)) {
            Generator generator = new Generator(scheduler, null);
            Thread[] caller = new Thread[1];
            Future<GenerationResult> call =
                    threads.submit(
                            () -> {
                                caller[0] = Thread.currentThread();
                                return generate(generator, prompt(5, 1), 900);
                            });
            await(running);
            caller[0].interrupt();
            interrupted.countDown();
            ExecutionException error = assertThrows(ExecutionException.class, call::get);
            assertTrue(
                    error.getCause().getMessage().contains("was interrupted"),
                    error.getCause().getMessage());
            assertEquals(0, model.open());
        }
    }

    /** Text is made where the call is; the request ends in the batch as well. */
    @Test
    void stopStringsEndTheText() throws Exception {
        try (HuggingFaceTokenizer tokenizer = Tokenizers.byteLevel()) {
            String said = "hello the hello";
            int[] script =
                    Arrays.stream(tokenizer.encode(said, false, false).getIds())
                            .mapToInt(Math::toIntExact)
                            .toArray();
            FakeModel model = FakeModel.saying(400, 1, Arrays.copyOf(script, 900));
            GenerationConfig config =
                    GenerationConfig.builder()
                            .optMaxNewTokens(800)
                            .optStopStrings(List.of("the h"))
                            .build();
            try (BatchScheduler scheduler = new BatchScheduler(model, BatchLimits.DEFAULT)) {
                List<GeneratedToken> heard = new ArrayList<>();
                GenerationResult result =
                        new Generator(scheduler, tokenizer)
                                .generate(
                                        List.of(new int[] {1}),
                                        config,
                                        heard::add,
                                        new Cancellation())
                                .get(0);
                assertEquals("hello ", result.text());
                assertEquals(FinishReason.STOP, result.finishReason());
                assertEquals(heard.size(), result.tokens().length);
                assertEquals(0, model.open());
            }
        }
    }
}
