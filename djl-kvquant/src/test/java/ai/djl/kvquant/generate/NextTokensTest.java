/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Models that tell the most probable tokens: what is generated is the same, logits or not. */
@Timeout(value = 120, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
class NextTokensTest {

    private static final int VOCABULARY = 50;
    private static final int TOKENS = 40;

    /** Random logits of few values, so that many are equal, which depend on all tokens before. */
    private static FakeModel model() {
        return new FakeModel(
                VOCABULARY,
                1000,
                100000,
                tokens -> {
                    Random random = new Random(tokens.hashCode());
                    float[] row = new float[VOCABULARY];
                    for (int i = 0; i < row.length; i++) {
                        row[i] = random.nextInt(8) / 2f - 5;
                    }
                    return row;
                });
    }

    private static GenerationConfig.Builder greedy() {
        return GenerationConfig.builder().optMaxNewTokens(TOKENS);
    }

    private static List<int[]> prompts(int count) {
        List<int[]> prompts = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            prompts.add(new Random(i).ints(3 + i, 0, VOCABULARY).toArray());
        }
        return prompts;
    }

    private static void requireSame(List<GenerationResult> expected, List<GenerationResult> found) {
        assertEquals(expected.size(), found.size());
        for (int i = 0; i < expected.size(); i++) {
            assertArrayEquals(expected.get(i).tokens(), found.get(i).tokens(), "sequence " + i);
            assertEquals(expected.get(i).logProbs(), found.get(i).logProbs());
            assertEquals(expected.get(i).topLogProbs(), found.get(i).topLogProbs());
        }
    }

    @Test
    void greedyTokensNeedNoLogits() {
        FakeModel plain = model();
        FakeModel telling = model().tellMostProbable();
        requireSame(
                new Generator(plain).generate(prompts(3), greedy().build()),
                new Generator(telling).generate(prompts(3), greedy().build()));
        assertEquals(TOKENS, plain.logitReads());
        assertEquals(0, telling.logitReads());
    }

    static Stream<UnaryOperator<GenerationConfig.Builder>> configsThatNeedLogits() {
        return Stream.of(
                config -> config.optDoSample(true).optSeed(5),
                config -> config.optDoSample(true).optTopK(3).optTopP(0.8f).optSeed(6),
                config -> config.optRepetitionPenalty(1.3f),
                config -> config.optLogProbs(true),
                config -> config.optLogProbs(true).optTopLogProbs(2));
    }

    @ParameterizedTest
    @MethodSource("configsThatNeedLogits")
    void whateverElseNeedsLogitsGetsThem(UnaryOperator<GenerationConfig.Builder> more) {
        GenerationConfig config = more.apply(greedy()).build();
        FakeModel telling = model().tellMostProbable();
        requireSame(
                new Generator(model()).generate(prompts(3), config),
                new Generator(telling).generate(prompts(3), config));
        assertEquals(TOKENS, telling.logitReads());
    }

    /** Greedy and sampled requests in one batch, and greedy ones alone. */
    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void requestsOfManyThreads(boolean mixed) throws Exception {
        FakeModel telling = model().tellMostProbable();
        ExecutorService threads = Executors.newCachedThreadPool();
        try (BatchScheduler scheduler = new BatchScheduler(telling, new BatchLimits(8, 64, 8))) {
            Generator together = new Generator(scheduler, null);
            List<Future<List<GenerationResult>>> found = new ArrayList<>();
            for (int i = 0; i < 24; i++) {
                List<int[]> prompt = prompts(24).subList(i, i + 1);
                GenerationConfig config = config(i, mixed);
                found.add(threads.submit(() -> together.generate(prompt, config)));
            }
            for (int i = 0; i < 24; i++) {
                Generator alone = new Generator(model());
                List<int[]> prompt = prompts(24).subList(i, i + 1);
                requireSame(alone.generate(prompt, config(i, mixed)), found.get(i).get());
            }
        } finally {
            threads.shutdownNow();
        }
        assertTrue(mixed == telling.logitReads() > 0, () -> telling.logitReads() + " reads");
    }

    private static GenerationConfig config(int request, boolean mixed) {
        boolean sampled = mixed && request % 3 == 0;
        return (sampled ? greedy().optDoSample(true).optSeed(request) : greedy()).build();
    }

    @Test
    void badLogitsAreToldAsEver() {
        FakeModel bad = new FakeModel(2, 100, 100, tokens -> new float[] {1, Float.NaN});
        Generator generator = new Generator(bad.tellMostProbable());
        IllegalStateException e =
                assertThrows(
                        IllegalStateException.class,
                        () -> generator.generate(List.of(new int[] {0, 1}), greedy().build()));
        assertEquals("The model gave NaN as the logit of token 1; try dtype=fp32.", e.getMessage());
    }
}
