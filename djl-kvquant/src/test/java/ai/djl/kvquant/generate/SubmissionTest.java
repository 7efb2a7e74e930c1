/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.CacheFullException;
import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.BooleanSupplier;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Requests that nobody waits for. The timeout ends what would hang; it measures nothing. */
@Timeout(value = 60, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
class SubmissionTest {

    private static final BatchLimits LIMITS = new BatchLimits(4, 8, 8);
    private static final Duration LONG = Duration.ofMinutes(10);

    private final CountDownLatch firstStep = new CountDownLatch(1);
    private final CountDownLatch goOn = new CountDownLatch(1);

    /** Keeps what it hears. */
    private static final class Heard implements SubmissionListener {

        private final List<GeneratedToken> tokens = new ArrayList<>();
        private final List<GenerationResult> results = new ArrayList<>();
        private final CompletableFuture<List<GenerationResult>> end = new CompletableFuture<>();
        private final int sequences;
        private final CountDownLatch pulses = new CountDownLatch(3);
        private Thread thread;

        Heard(int sequences) {
            this.sequences = sequences;
        }

        @Override
        public boolean onToken(GeneratedToken token) {
            thread = Thread.currentThread();
            return tokens.add(token);
        }

        @Override
        public void onFinish(int sequence, String remainder, GenerationResult result) {
            results.add(result);
            if (results.size() == sequences) {
                end.complete(results);
            }
        }

        @Override
        public void onPulse() {
            pulses.countDown();
        }

        @Override
        public void onError(Throwable error) {
            assertTrue(end.completeExceptionally(error), "a second end");
        }

        Throwable error() {
            return assertThrows(ExecutionException.class, end::get).getCause();
        }
    }

    private static FakeModel model(int capacity) {
        return new FakeModel(50, 1000, capacity, tokens -> FakeModel.peak(50, tokens.size() % 50));
    }

    /** A model whose first step waits, so that what comes then has to wait, too. */
    private FakeModel stuck() {
        FakeModel model = model(1000);
        model.onStep(
                () -> {
                    firstStep.countDown();
                    try {
                        goOn.await();
                    } catch (InterruptedException e) {
                        throw new IllegalStateException(e);
                    }
                });
        return model;
    }

    private static GenerationConfig config(int tokens) {
        return GenerationConfig.builder().optMaxNewTokens(tokens).build();
    }

    private static Heard submit(BatchScheduler scheduler, int newTokens, int... prompt) {
        Heard heard = new Heard(1);
        new Generator(scheduler, null)
                .submit(List.of(prompt), config(newTokens), heard, () -> false, LONG);
        return heard;
    }

    @Test
    void hearsTheTokensOfACallThatWaits() throws Exception {
        FakeModel model = model(1000);
        try (BatchScheduler scheduler = new BatchScheduler(model, LIMITS)) {
            Heard heard = new Heard(2);
            List<int[]> prompts = List.of(new int[] {1, 2, 3}, new int[] {4});
            Generator generator = new Generator(scheduler, null);
            generator.submit(prompts, config(7), heard, () -> false, LONG);
            heard.end.get();
            List<GenerationResult> waited = generator.generate(prompts, config(7));
            for (GenerationResult result : heard.results) {
                int[] expected = waited.get(result.promptTokens() == 3 ? 0 : 1).tokens();
                assertArrayEquals(expected, result.tokens());
            }
            assertEquals(14, heard.tokens.size());
            assertEquals("kvquant-deliveries", heard.thread.getName());
        }
        assertEquals(0, model.open());
    }

    @Test
    void returnsBeforeAnythingIsComputed() throws Exception {
        try (BatchScheduler scheduler = new BatchScheduler(stuck(), LIMITS)) {
            Heard heard = submit(scheduler, 5, 1);
            firstStep.await();
            Heard second = submit(scheduler, 5, 2);
            goOn.countDown();
            assertEquals(5, heard.end.get().get(0).tokens().length);
            assertEquals(5, second.end.get().get(0).tokens().length);
        }
    }

    private static final Duration SHORT = Duration.ofMillis(1);

    private static BatchScheduler pulsing(FakeModel model) {
        Deliveries deliveries = new Deliveries(SHORT, LONG, LONG);
        return new BatchScheduler(model, LIMITS, deliveries);
    }

    /** Whoever waits for tokens hears that the request goes on, also before the first of them. */
    @Test
    void pulsesWhileNothingComes() throws Exception {
        try (BatchScheduler scheduler = pulsing(stuck())) {
            Heard running = submit(scheduler, 5, 1);
            firstStep.await();
            Heard waiting = submit(scheduler, 5, 2);
            running.pulses.await();
            waiting.pulses.await();
            assertEquals(0, waiting.tokens.size());
            goOn.countDown();
            assertEquals(5, running.end.get().get(0).tokens().length);
            assertEquals(5, waiting.end.get().get(0).tokens().length);
            assertEquals("kvquant-deliveries", waiting.thread.getName());
        }
    }

    @Test
    void anErrorInAPulseEndsTheRequest() throws Exception {
        try (BatchScheduler scheduler = pulsing(stuck())) {
            CompletableFuture<Throwable> told = new CompletableFuture<>();
            SubmissionListener broken =
                    new SubmissionListener() {
                        @Override
                        public boolean onToken(GeneratedToken token) {
                            return true;
                        }

                        @Override
                        public void onPulse() {
                            throw new IllegalStateException("broken");
                        }

                        @Override
                        public void onError(Throwable error) {
                            assertTrue(told.complete(error), "a second end");
                        }
                    };
            new Generator(scheduler, null)
                    .submit(List.of(new int[] {1}), config(900), broken, () -> false, LONG);
            assertEquals("broken", told.get().getMessage());
            goOn.countDown();
        }
    }

    /** Closing does not wait in silence for a listener that does not return. */
    @Test
    void closingSaysWhatItWaitsFor() throws Exception {
        PrintStream stderr = System.err;
        ByteArrayOutputStream log = new ByteArrayOutputStream();
        CountDownLatch told = new CountDownLatch(1);
        CountDownLatch release = new CountDownLatch(1);
        System.setErr(new PrintStream(log, true, StandardCharsets.UTF_8));
        try {
            Deliveries deliveries = new Deliveries(SHORT, SHORT, Duration.ofMillis(20));
            deliveries.run(
                    () -> {
                        told.countDown();
                        try {
                            release.await();
                        } catch (InterruptedException e) {
                            throw new IllegalStateException(e);
                        }
                    });
            deliveries.run(() -> {});
            told.await();
            deliveries.close();
        } finally {
            System.setErr(stderr);
            release.countDown();
        }
        String text = log.toString(StandardCharsets.UTF_8);
        assertTrue(text.contains("Closing waits"), text);
        assertTrue(text.contains("1 deliveries behind it"), text);
    }

    @Test
    void endsARequestThatWaitsTooLong() throws Exception {
        try (BatchScheduler scheduler = new BatchScheduler(stuck(), LIMITS)) {
            Heard first = submit(scheduler, 5, 1);
            firstStep.await();
            Heard late = new Heard(1);
            new Generator(scheduler, null)
                    .submit(
                            List.of(new int[] {2}),
                            config(5),
                            late,
                            () -> false,
                            Duration.ofNanos(1));
            goOn.countDown();
            Throwable error = assertInstanceOf(WaitTooLongException.class, late.error());
            assertTrue(error.getMessage().contains("longest that it was to wait"));
            assertEquals(FinishReason.LENGTH, first.end.get().get(0).finishReason());
        }
    }

    @Test
    void anyThreadMayCancel() throws Exception {
        FakeModel model = stuck();
        try (BatchScheduler scheduler = new BatchScheduler(model, LIMITS)) {
            AtomicBoolean cancelled = new AtomicBoolean();
            Heard heard = new Heard(1);
            new Generator(scheduler, null)
                    .submit(List.of(new int[] {1}), config(900), heard, cancelled::get, LONG);
            firstStep.await();
            cancelled.set(true);
            goOn.countDown();
            assertEquals(FinishReason.CANCELLED, heard.end.get().get(0).finishReason());
        }
        assertEquals(0, model.open());
    }

    @Test
    void hearsOfAnErrorOnce() {
        FakeModel model = model(10);
        try (BatchScheduler scheduler = new BatchScheduler(model, LIMITS)) {
            Heard heard = new Heard(2);
            new Generator(scheduler, null)
                    .submit(List.of(new int[20], new int[30]), config(5), heard, () -> false, LONG);
            assertInstanceOf(CacheFullException.class, heard.error());
        }
        assertEquals(0, model.open());
    }

    @Test
    void anErrorOfAListenerEndsItsOwnRequestOnly() throws Exception {
        FakeModel model = model(1000);
        try (BatchScheduler scheduler = new BatchScheduler(model, LIMITS)) {
            CompletableFuture<Throwable> told = new CompletableFuture<>();
            SubmissionListener broken =
                    new SubmissionListener() {
                        @Override
                        public boolean onToken(GeneratedToken token) {
                            throw new IllegalStateException("broken");
                        }

                        @Override
                        public void onError(Throwable error) {
                            told.complete(error);
                        }
                    };
            new Generator(scheduler, null)
                    .submit(List.of(new int[] {1}), config(900), broken, () -> false, LONG);
            Heard other = submit(scheduler, 5, 2);
            assertEquals("broken", told.get().getMessage());
            assertEquals(5, other.end.get().get(0).tokens().length);
        }
        assertEquals(0, model.open());
    }

    /** Who asks is the scheduler's thread, which serves the others as well. */
    @Test
    void anErrorInAskingEndsItsOwnRequestOnly() throws Exception {
        FakeModel model = model(1000);
        try (BatchScheduler scheduler = new BatchScheduler(model, LIMITS)) {
            Heard heard = new Heard(1);
            BooleanSupplier broken =
                    () -> {
                        throw new IllegalStateException("broken");
                    };
            new Generator(scheduler, null)
                    .submit(List.of(new int[] {1}), config(900), heard, broken, LONG);
            Heard other = submit(scheduler, 5, 2);
            assertEquals("broken", heard.error().getMessage());
            assertEquals(5, other.end.get().get(0).tokens().length);
        }
        assertEquals(0, model.open());
    }

    /** A model that can not free its cache leaves nobody waiting. */
    @ParameterizedTest
    @ValueSource(ints = {1, 5})
    void anErrorInFreeingTheCacheLosesNoRequest(int newTokens) throws Exception {
        FakeModel model = model(1000);
        model.failOnClose();
        try (BatchScheduler scheduler = new BatchScheduler(model, LIMITS)) {
            for (int i = 0; i < 3; i++) {
                Heard heard = submit(scheduler, newTokens, i);
                heard.end.handle((results, error) -> true).get();
            }
        }
        assertEquals(0, model.open());
    }

    @Test
    void closingTellsEveryListener() throws Exception {
        List<Heard> all = new ArrayList<>();
        try (BatchScheduler scheduler = new BatchScheduler(stuck(), LIMITS)) {
            for (int i = 0; i < 8; i++) {
                all.add(submit(scheduler, 900, i));
            }
            firstStep.await();
            goOn.countDown();
        }
        for (Heard heard : all) {
            assertTrue(heard.end.isDone(), "told when the scheduler is closed");
            assertTrue(heard.error().getMessage().startsWith("The model was closed"));
        }
    }

    @Test
    void refusesWhatItCanNotTake() throws Exception {
        try (BatchScheduler scheduler = new BatchScheduler(stuck(), LIMITS)) {
            submit(scheduler, 5, 1);
            firstStep.await();
            for (int i = 0; i < 8; i++) {
                submit(scheduler, 1, i);
            }
            assertThrows(TooManyRequestsException.class, () -> submit(scheduler, 1, 9));
            assertThrows(IllegalArgumentException.class, () -> submit(scheduler, 1, 50));
            goOn.countDown();
        }
        Generator alone = new Generator(model(10));
        IllegalStateException error =
                assertThrows(
                        IllegalStateException.class,
                        () ->
                                alone.submit(
                                        List.of(new int[] {1}),
                                        config(1),
                                        new Heard(1),
                                        () -> false,
                                        null));
        assertTrue(error.getMessage().contains("no scheduler"));
    }
}
