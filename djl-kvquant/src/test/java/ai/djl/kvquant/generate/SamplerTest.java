/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.Comparator;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Compares with distributions computed step by step from the definitions. */
class SamplerTest {

    private static final int DRAWS = 20000;

    @ParameterizedTest
    @CsvSource({
        // temperature, top-k, top-p, min-p, penalty
        "1, 0, 1, 0, 1",
        "0.5, 0, 1, 0, 1",
        "2, 0, 1, 0, 1.3",
        "1, 3, 1, 0, 1",
        "1, 100, 1, 0, 1",
        "1, 0, 0.7, 0, 1",
        "1.5, 0, 0.9, 0, 1.2",
        "1, 0, 0.0001, 0, 1",
        "1, 0, 1, 0.2, 1",
        "0.7, 0, 1, 1, 1",
        "1, 4, 0.8, 0, 1",
        "1.7, 5, 0.9, 0.3, 0.8",
        "0.8, 0, 0.95, 0.15, 1.1",
    })
    void drawsFromTheDefinedDistribution(
            float temperature, int topK, float topP, float minP, float penalty) {
        int[] prompt = {1, 4, 4, 11};
        float[] logits = new float[12];
        Random random = new Random(3);
        for (int i = 0; i < logits.length; i++) {
            logits[i] = (float) random.nextGaussian() * 2;
        }
        logits[7] = Float.NEGATIVE_INFINITY;
        logits[9] = logits[2]; // a tie
        GenerationConfig config =
                GenerationConfig.builder()
                        .optTopK(topK)
                        .optTopP(topP)
                        .optMinP(minP)
                        .optTemperature(temperature)
                        .optRepetitionPenalty(penalty)
                        .build();
        double[] expected = defined(logits, prompt, config);
        int[] counts = new int[logits.length];
        Sampler sampler = new Sampler(config, logits.length);
        float[] before = logits.clone();
        for (int i = 0; i < DRAWS; i++) {
            counts[sampler.sample(logits, new SamplerState(config, i, 0, prompt))]++;
        }
        assertEquals(Arrays.toString(before), Arrays.toString(logits), "the logits were changed");
        for (int i = 0; i < logits.length; i++) {
            double deviation = Math.sqrt(expected[i] * (1 - expected[i]) / DRAWS);
            assertEquals(
                    expected[i],
                    counts[i] / (double) DRAWS,
                    5 * deviation,
                    "token " + i + " of " + Arrays.toString(expected));
        }
    }

    /** The distribution, with each step written as HuggingFace's logits processors define it. */
    private static double[] defined(float[] logits, int[] prompt, GenerationConfig config) {
        double[] scores = IntStream.range(0, logits.length).mapToDouble(i -> logits[i]).toArray();
        for (int token : Arrays.stream(prompt).distinct().toArray()) {
            double penalty = config.getRepetitionPenalty();
            scores[token] = scores[token] < 0 ? scores[token] * penalty : scores[token] / penalty;
        }
        for (int i = 0; i < scores.length; i++) {
            scores[i] /= config.getTemperature();
        }
        if (config.getTopK() > 0) {
            double[] sorted = Arrays.stream(scores).sorted().toArray();
            double kth = sorted[Math.max(0, sorted.length - config.getTopK())];
            mask(scores, i -> scores[i] < kth);
        }
        if (config.getTopP() < 1) {
            double[] p = softmax(scores);
            Integer[] ascending = IntStream.range(0, p.length).boxed().toArray(Integer[]::new);
            // Of equal ones, the larger id is dropped first.
            Arrays.sort(
                    ascending,
                    Comparator.<Integer>comparingDouble(i -> p[i])
                            .thenComparing(Comparator.reverseOrder()));
            double sum = 0;
            for (int i = 0; i < ascending.length - 1; i++) {
                sum += p[ascending[i]];
                if (sum <= 1 - (double) config.getTopP()) {
                    scores[ascending[i]] = Double.NEGATIVE_INFINITY;
                }
            }
        }
        double[] p = softmax(scores);
        double least = config.getMinP() * Arrays.stream(p).max().getAsDouble();
        mask(scores, i -> p[i] < least);
        return softmax(scores);
    }

    private static void mask(double[] scores, java.util.function.IntPredicate drop) {
        for (int i = 0; i < scores.length; i++) {
            if (drop.test(i)) {
                scores[i] = Double.NEGATIVE_INFINITY;
            }
        }
    }

    private static double[] softmax(double[] scores) {
        double max = Arrays.stream(scores).max().getAsDouble();
        double sum = Arrays.stream(scores).map(s -> Math.exp(s - max)).sum();
        return Arrays.stream(scores).map(s -> Math.exp(s - max) / sum).toArray();
    }

    @Test
    void greedyTakesTheFirstLargest() {
        GenerationConfig config = GenerationConfig.builder().build();
        float[] logits = {1, 5, -2, 5};
        SamplerState state = new SamplerState(config, 0, 0, new int[] {1});
        assertEquals(1, new Sampler(config, 4).sample(logits, state));
    }

    /** HuggingFace's definition: negative logits are multiplied, and generated tokens count. */
    @Test
    void repetitionPenaltyCountsPromptAndGeneratedTokens() {
        GenerationConfig config = GenerationConfig.builder().optRepetitionPenalty(2).build();
        float[] logits = {4, 3.5f, 2.5f, -0.5f};
        Sampler sampler = new Sampler(config, 4);
        SamplerState state = new SamplerState(config, 0, 0, new int[] {0, 0});
        assertEquals(1, sampler.sample(logits, state), "4 / 2 < 3.5");
        assertEquals(2, sampler.sample(logits, state), "3.5 / 2 < 2.5");
        assertEquals(0, sampler.sample(logits, state), "2 is the largest of 2, 1.75, 1.25, -0.5");
        float[] negative = {-1, -1.5f, -9, -9};
        SamplerState second = new SamplerState(config, 0, 0, new int[] {0});
        assertEquals(1, sampler.sample(negative, second), "-1 * 2 < -1.5");
    }

    @Test
    void aVerySmallTemperatureIsGreedy() {
        GenerationConfig config = GenerationConfig.builder().optTemperature(1e-30f).build();
        Sampler sampler = new Sampler(config, 3);
        SamplerState state = new SamplerState(config, 1, 0, new int[] {0});
        for (int i = 0; i < 100; i++) {
            assertEquals(2, sampler.sample(new float[] {1, 2, 2.001f}, state));
        }
    }

    @Test
    void refusesLogitsThatAreNotNumbers() {
        GenerationConfig config = GenerationConfig.builder().build();
        Sampler sampler = new Sampler(config, 2);
        SamplerState state = new SamplerState(config, 0, 0, new int[] {0});
        String message =
                assertThrows(
                                IllegalStateException.class,
                                () -> sampler.sample(new float[] {1, Float.NaN}, state))
                        .getMessage();
        assertTrue(message.contains("token 1"), message);
        float[] nothing = {Float.NEGATIVE_INFINITY, Float.NEGATIVE_INFINITY};
        assertThrows(IllegalStateException.class, () -> sampler.sample(nothing, state));
        float[] infinite = {Float.POSITIVE_INFINITY, 0};
        assertThrows(IllegalStateException.class, () -> sampler.sample(infinite, state));
    }

    @Test
    void topLogProbsAreSortedAndOfEqualOnesTheFirstComesFirst() {
        float[] logits = {0, 2, 2, 1, 3};
        assertEquals(
                "[4, 1, 2]",
                Sampler.topLogProbs(logits, 3).stream()
                        .map(TokenLogProb::token)
                        .toList()
                        .toString());
        assertEquals(5, Sampler.topLogProbs(logits, 100).size());
    }
}
