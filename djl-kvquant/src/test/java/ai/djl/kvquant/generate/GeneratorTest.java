/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.CacheFullException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Set;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class GeneratorTest {

    private static final int VOCABULARY = 300;
    private static final int END = 0;

    private static HuggingFaceTokenizer tokenizer;

    @BeforeAll
    static void open() {
        tokenizer = Tokenizers.byteLevel();
    }

    @AfterAll
    static void close() {
        tokenizer.close();
    }

    private static GenerationConfig.Builder config() {
        return GenerationConfig.builder().optEosTokenIds(Set.of(END));
    }

    private static int[] ids(String text) {
        return Arrays.stream(tokenizer.encode(text, false, false).getIds())
                .mapToInt(Math::toIntExact)
                .toArray();
    }

    /** A model that says the text and then the end token, after a prompt of one token. */
    private static FakeModel saying(String text) {
        int[] script = ids(text + "<|end|>");
        return FakeModel.saying(VOCABULARY, 1, Arrays.copyOf(script, script.length + 50));
    }

    @Test
    void endsAtTheEndToken() {
        FakeModel model = saying("the hello \uD83D\uDE42\u4F60!");
        List<GeneratedToken> heard = new ArrayList<>();
        GenerationResult result =
                new Generator(model, tokenizer).generate("a", config().build(), heard::add);
        assertEquals("the hello \uD83D\uDE42\u4F60!", result.text());
        assertEquals(FinishReason.EOS, result.finishReason());
        assertEquals(1, result.promptTokens());
        assertArrayEquals(ids("the hello \uD83D\uDE42\u4F60!<|end|>"), result.tokens());
        assertEquals(result.tokens().length, heard.size());
        assertEquals(result.text(), text(heard));
        assertEquals(END, heard.get(heard.size() - 1).id());
        assertEquals(FinishReason.EOS, heard.get(heard.size() - 1).finishReason());
        assertTrue(result.timeToFirstToken().toNanos() > 0);
        assertTrue(result.tokensPerSecond() > 0);
        assertEquals("fake", result.cacheUsage().dtype());
        assertEquals(result.tokens().length, result.cacheUsage().bytes());
        assertEquals(0, model.open());
    }

    @Test
    void goesOnAfterTheEndTokenIfAsked() {
        FakeModel model = saying("hello");
        GenerationConfig config = config().optIgnoreEos(true).optMaxNewTokens(9).build();
        GenerationResult result = new Generator(model, tokenizer).generate("a", config);
        assertEquals(9, result.tokens().length);
        assertEquals(FinishReason.LENGTH, result.finishReason());
        assertEquals("hello", result.text());
    }

    @Test
    void endsAtMaxNewTokensAndGivesOutWhatWasHeldBack() {
        int[] script = ids("a\uD83D\uDE42");
        FakeModel model = FakeModel.saying(VOCABULARY, 1, script);
        List<GeneratedToken> heard = new ArrayList<>();
        GenerationConfig config =
                config().optMaxNewTokens(2).optStopStrings(List.of("a\uFFFDx")).build();
        GenerationResult result = new Generator(model, tokenizer).generate("a", config, heard::add);
        assertEquals(FinishReason.LENGTH, result.finishReason());
        assertEquals("a\uFFFD", result.text());
        assertEquals("a\uFFFD", text(heard));
        assertEquals(List.of("prefill 1", "step 1"), model.calls());
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "lo t",
                "hello",
                "o the \uD83D\uDE42",
                " ",
                "\uD83D\uDE42",
                "e \uD83D\uDE42"
            })
    void endsAtAStopStringAcrossTokens(String stop) {
        String all = "hello the \uD83D\uDE42, the";
        FakeModel model = saying(all);
        List<GeneratedToken> heard = new ArrayList<>();
        GenerationConfig config = config().optStopStrings(List.of("never", stop)).build();
        GenerationResult result = new Generator(model, tokenizer).generate("a", config, heard::add);
        assertEquals(all.substring(0, all.indexOf(stop)), result.text());
        assertEquals(result.text(), text(heard));
        assertEquals(FinishReason.STOP, result.finishReason());
        assertEquals(0, model.open());
    }

    @Test
    void textHeldBackForAStopStringIsNotLost() {
        FakeModel model = saying("hello the he");
        GenerationConfig config = config().optStopStrings(List.of("the hello", "he!")).build();
        List<GeneratedToken> heard = new ArrayList<>();
        GenerationResult result = new Generator(model, tokenizer).generate("a", config, heard::add);
        assertEquals("hello the he", result.text());
        assertEquals("hello the he", text(heard));
        assertEquals(FinishReason.EOS, result.finishReason());
    }

    @Test
    void dropsFinishedRowsOfARaggedBatch() {
        // Row i goes on until it has 4 + 2 * (first token of its prompt) tokens.
        FakeModel model =
                new FakeModel(
                        VOCABULARY,
                        1000,
                        1000,
                        t -> FakeModel.peak(VOCABULARY, t.size() < 4 + 2 * t.get(0) ? 40 : END));
        List<int[]> prompts = List.of(new int[] {3}, new int[] {1, 5, 5}, new int[] {2, 7});
        List<GenerationResult> results = new Generator(model).generate(prompts, config().build());
        assertArrayEquals(lengths(10, 4, 7), lengths(results));
        assertEquals(
                List.of(1, 3, 2), results.stream().map(GenerationResult::promptTokens).toList());
        assertEquals(
                List.of("prefill 3", "step 3", "step 3", "step 3", "keep [0, 2]"),
                model.calls().subList(0, 5));
        assertTrue(model.calls().contains("keep [0]"));
        assertEquals(0, model.open());
    }

    @Test
    void returnsTheTextSoFarWhenTheCacheFills() {
        int[] script = ids("hello \uD83D\uDE42");
        FakeModel full =
                new FakeModel(
                        VOCABULARY,
                        1000,
                        12,
                        t -> FakeModel.peak(VOCABULARY, script[t.size() - 1]));
        List<String> remainders = new ArrayList<>();
        List<GeneratedToken> heard = new ArrayList<>();
        GenerationListener listener =
                new GenerationListener() {
                    @Override
                    public boolean onToken(GeneratedToken token) {
                        return heard.add(token);
                    }

                    @Override
                    public void onFinish(int row, String remainder, GenerationResult result) {
                        remainders.add(remainder);
                    }
                };
        GenerationConfig config = config().optStopStrings(List.of("hello x")).build();
        List<GenerationResult> results =
                new Generator(full, tokenizer)
                        .generate(
                                List.of(new int[] {20}, new int[] {30}, new int[] {40}),
                                config,
                                listener,
                                new Cancellation());
        for (GenerationResult result : results) {
            assertEquals(FinishReason.CACHE_FULL, result.finishReason());
            assertEquals("KV cache is full: 12 tokens fit.", result.message());
            assertArrayEquals(Arrays.copyOf(script, 4), result.tokens());
            assertEquals("hello \uFFFD", result.text());
        }
        assertEquals(3, remainders.size());
        for (int row = 0; row < 3; row++) {
            int sequence = row;
            String streamed = text(heard.stream().filter(t -> t.sequence() == sequence).toList());
            assertEquals(results.get(row).text(), streamed + remainders.get(row));
        }
        assertEquals(0, full.open());
    }

    @Test
    void throwsWhenThePromptDoesNotFit() {
        FakeModel model = new FakeModel(VOCABULARY, 1000, 3, t -> FakeModel.peak(VOCABULARY, 5));
        List<int[]> prompts = List.of(new int[] {1, 1}, new int[] {1, 1});
        assertThrows(
                CacheFullException.class,
                () -> new Generator(model).generate(prompts, config().build()));
        assertEquals(0, model.open());
    }

    @Test
    void endsAtTheContextLength() {
        FakeModel model = new FakeModel(VOCABULARY, 8, 1000, t -> FakeModel.peak(VOCABULARY, 5));
        List<int[]> prompts = List.of(new int[] {1, 1, 1}, new int[] {1, 1, 1, 1, 1, 1, 1});
        List<GenerationResult> results = new Generator(model).generate(prompts, config().build());
        assertArrayEquals(lengths(5, 1), lengths(results));
        assertEquals(FinishReason.CONTEXT_FULL, results.get(0).finishReason());
        assertEquals(FinishReason.CONTEXT_FULL, results.get(1).finishReason());
    }

    @Test
    void aListenerEndsItsSequenceOnly() {
        FakeModel model = new FakeModel(VOCABULARY, 99, 1000, t -> FakeModel.peak(VOCABULARY, 5));
        List<GenerationResult> results =
                new Generator(model)
                        .generate(
                                List.of(new int[] {1}, new int[] {2}),
                                config().optMaxNewTokens(6).build(),
                                token -> token.sequence() == 1 || token.position() < 2,
                                new Cancellation());
        assertArrayEquals(lengths(3, 6), lengths(results));
        assertEquals(FinishReason.CANCELLED, results.get(0).finishReason());
        assertEquals(FinishReason.LENGTH, results.get(1).finishReason());
    }

    @Test
    void aCancellationEndsAll() {
        FakeModel model = new FakeModel(VOCABULARY, 99, 1000, t -> FakeModel.peak(VOCABULARY, 5));
        Cancellation cancellation = new Cancellation();
        model.onStep(
                () -> {
                    if (model.calls().size() == 3) {
                        Thread other = new Thread(cancellation::cancel);
                        other.start();
                        try {
                            other.join();
                        } catch (InterruptedException e) {
                            throw new AssertionError(e);
                        }
                    }
                });
        List<int[]> prompts = List.of(new int[] {1}, new int[] {2});
        List<GenerationResult> results =
                new Generator(model).generate(prompts, config().build(), t -> true, cancellation);
        assertArrayEquals(lengths(4, 4), lengths(results));
        assertEquals(FinishReason.CANCELLED, results.get(1).finishReason());
        assertEquals(0, model.open());

        GenerationResult early =
                new Generator(model)
                        .generate(prompts, config().build(), t -> true, cancellation)
                        .get(0);
        assertEquals(FinishReason.CANCELLED, early.finishReason());
        assertEquals(0, early.tokens().length);
        assertNull(early.cacheUsage());
    }

    @Test
    void anExceptionOfTheListenerClosesEverything() {
        FakeModel model = saying("hello");
        RuntimeException own = new RuntimeException("own");
        GenerationListener broken =
                token -> {
                    throw own;
                };
        Generator generator = new Generator(model, tokenizer);
        RuntimeException thrown =
                assertThrows(
                        RuntimeException.class,
                        () -> generator.generate("a", config().build(), broken));
        assertSame(own, thrown);
        assertEquals(0, model.open());
    }

    @Test
    void streamsWhatGenerateReturns() {
        FakeModel model = saying("the hello \uD83D\uDE42");
        List<GeneratedToken> pulled = new ArrayList<>();
        Generator generator = new Generator(model, tokenizer);
        try (TokenStream stream = generator.stream("a", config().build())) {
            assertThrows(IllegalStateException.class, stream::result);
            stream.forEachRemaining(pulled::add);
            assertEquals("the hello \uD83D\uDE42", text(pulled) + stream.remainder());
            assertEquals(FinishReason.EOS, stream.result().finishReason());
            assertThrows(NoSuchElementException.class, stream::next);
            assertEquals(0, model.open());
        }
    }

    @Test
    void aStreamClosedEarlyReleasesTheCache() {
        FakeModel model = saying("the hello");
        TokenStream stream = new Generator(model, tokenizer).stream("a", config().build());
        stream.next();
        assertEquals(1, model.open());
        stream.close();
        stream.close();
        assertEquals(0, model.open());
        assertEquals(false, stream.hasNext());

        TokenStream cancelled = new Generator(model, tokenizer).stream("a", config().build());
        cancelled.next();
        cancelled.cancel();
        assertEquals(false, cancelled.hasNext());
        assertEquals(FinishReason.CANCELLED, cancelled.result().finishReason());
        assertEquals(0, model.open());
    }

    @Test
    void logProbabilitiesAreTheSoftmaxOfTheRawLogits() {
        float[] logits = {1, 3, 2, 3, -1};
        FakeModel model = new FakeModel(5, 99, 1000, t -> logits);
        GenerationConfig config =
                GenerationConfig.builder()
                        .optRepetitionPenalty(10)
                        .optTopLogProbs(3)
                        .optMaxNewTokens(2)
                        .build();
        GenerationResult result =
                new Generator(model).generate(List.of(new int[] {1}), config).get(0);
        assertArrayEquals(new int[] {3, 2}, result.tokens());
        double norm = 0;
        for (float logit : logits) {
            norm += Math.exp(logit);
        }
        assertEquals(3 - Math.log(norm), result.logProbs().get(0).logProb(), 1e-6);
        assertEquals(2 - Math.log(norm), result.logProbs().get(1).logProb(), 1e-6);
        assertEquals(
                List.of(1, 3, 2),
                result.topLogProbs().get(0).stream().map(TokenLogProb::token).toList());
        assertEquals(3 - Math.log(norm), result.topLogProbs().get(0).get(0).logProb(), 1e-6);
    }

    @Test
    void aSampledTextDoesNotDependOnTheBatch() {
        FakeModel model =
                new FakeModel(
                        50,
                        99,
                        10000,
                        t -> {
                            float[] row = new float[50];
                            for (int i = 0; i < 50; i++) {
                                row[i] = (t.get(t.size() - 1) * 31 + i * 17) % 23 / 6f;
                            }
                            return row;
                        });
        GenerationConfig config =
                GenerationConfig.builder()
                        .optTemperature(1.5f)
                        .optSeed(5)
                        .optMaxNewTokens(30)
                        .build();
        Generator generator = new Generator(model);
        int[] prompt = {7, 8};
        int[] alone = generator.generate(List.of(prompt), config).get(0).tokens();
        List<GenerationResult> together =
                generator.generate(List.of(new int[] {9}, prompt, new int[] {3}, prompt), config);
        assertArrayEquals(alone, together.get(1).tokens());
        assertTrue(!Arrays.equals(alone, together.get(3).tokens()), "copies have equal texts");
        int[] other =
                generator
                        .generate(List.of(prompt), config.toBuilder().optSeed(6).build())
                        .get(0)
                        .tokens();
        assertTrue(!Arrays.equals(alone, other), "seeds give equal texts");
    }

    @Test
    void refusesPromptsWithAClearMessage() {
        FakeModel model = new FakeModel(10, 8, 99, t -> FakeModel.peak(10, 5));
        Generator generator = new Generator(model);
        assertRefused(
                generator, List.of(new int[0]), "The prompt is empty; give at least one token");
        assertRefused(
                generator,
                List.of(new int[] {1}, new int[8]),
                "Prompt 1 has 8 tokens, but the model's context of 8 tokens leaves room for at most"
                        + " 7 and one new token; shorten it.");
        assertRefused(
                generator,
                List.of(new int[] {1, 10}),
                "The prompt has the token 10, but the model's vocabulary goes from 0 to 9");
        assertRefused(generator, List.of(new int[] {-1}), "has the token -1");
        String noTokenizer =
                assertThrows(
                                IllegalArgumentException.class,
                                () ->
                                        generator.generate(
                                                List.of(new int[] {1}),
                                                config().optStopStrings(List.of("x")).build()))
                        .getMessage();
        assertTrue(noTokenizer.contains("no tokenizer"), noTokenizer);
        assertThrows(IllegalStateException.class, () -> generator.encode("x", true));
        assertEquals(List.of(), generator.generate(List.of(), config().build()));
        assertEquals(0, model.open());
    }

    private static void assertRefused(Generator generator, List<int[]> prompts, String message) {
        String actual =
                assertThrows(
                                IllegalArgumentException.class,
                                () -> generator.generate(prompts, config().build()))
                        .getMessage();
        assertTrue(actual.contains(message), actual);
    }

    private static String text(List<GeneratedToken> tokens) {
        StringBuilder text = new StringBuilder();
        tokens.forEach(token -> text.append(token.text()));
        return text.toString();
    }

    private static int[] lengths(int... lengths) {
        return lengths;
    }

    private static int[] lengths(List<GenerationResult> results) {
        return results.stream().mapToInt(result -> result.tokens().length).toArray();
    }
}
