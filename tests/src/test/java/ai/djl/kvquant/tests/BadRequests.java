/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import ai.djl.inference.Predictor;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.repository.zoo.ZooModel;
import ai.djl.translate.TranslateException;
import java.util.List;
import java.util.function.Function;
import java.util.stream.Stream;

/** Requests to an open model, of 512 tokens context and a vocabulary of 256, that can not be. */
final class BadRequests {

    private static final int[] PROMPT = SmallModel.prompt(20, 3);

    private BadRequests() {}

    private static BadInput<ZooModel<NDList, NDList>> generate(
            String name, List<int[]> prompts, String... fragments) {
        return BadInput.of(
                "generate: " + name,
                IllegalArgumentException.class,
                m -> new Generator(languageModel(m)).generate(prompts, SmallModel.config(2)),
                fragments);
    }

    private static BadInput<ZooModel<NDList, NDList>> prefill(
            String name, List<int[]> prompts, String... fragments) {
        return BadInput.of(
                "prefill: " + name,
                IllegalArgumentException.class,
                m -> languageModel(m).prefill(prompts).close(),
                fragments);
    }

    /** Does something to a batch of two rows. */
    private static BadInput<ZooModel<NDList, NDList>> batch(
            String name,
            Class<? extends Exception> type,
            BadInput.Action<DecodingBatch> action,
            String... fragments) {
        return BadInput.of(
                name,
                type,
                m -> {
                    try (DecodingBatch batch = languageModel(m).prefill(List.of(PROMPT, PROMPT))) {
                        action.run(batch);
                    }
                },
                fragments);
    }

    private static BadInput<ZooModel<NDList, NDList>> block(
            String name, Function<NDManager, NDArray> ids, String... fragments) {
        return BadInput.of(
                "block: " + name,
                TranslateException.class,
                m -> {
                    try (NDManager manager = m.getNDManager().newSubManager();
                            Predictor<NDList, NDList> predictor = m.newPredictor()) {
                        predictor.predict(new NDList(ids.apply(manager)));
                    }
                },
                fragments);
    }

    private static BadInput<ZooModel<NDList, NDList>> setting(
            String name, BadInput.Action<GenerationConfig.Builder> set, String... fragments) {
        return BadInput.of(
                name,
                IllegalArgumentException.class,
                m -> set.run(GenerationConfig.builder()),
                fragments);
    }

    private static LanguageModel languageModel(ZooModel<NDList, NDList> model) {
        return SmallModel.languageModel(model);
    }

    static Stream<BadInput<ZooModel<NDList, NDList>>> table() {
        return Stream.of(prompts(), batches(), sequences(), blocks(), settings()).flatMap(s -> s);
    }

    private static Stream<BadInput<ZooModel<NDList, NDList>>> prompts() {
        int[] tooLong = SmallModel.prompt(SmallModel.CONTEXT, 4);
        int[] wayTooLong = SmallModel.prompt(SmallModel.CONTEXT + 1, 4);
        String vocabulary = "the model's vocabulary goes from 0 to 255";
        return Stream.of(
                generate("an empty prompt", List.of(new int[0]), "The prompt is empty", "at least"),
                generate(
                        "the second prompt is empty",
                        List.of(PROMPT, new int[0]),
                        "Prompt 1 is empty",
                        "give at least one token"),
                generate(
                        "no room for a new token",
                        List.of(tooLong),
                        "The prompt has 512 tokens",
                        "context of 512 tokens leaves room for at most 511",
                        "shorten it"),
                generate("token 256", List.of(new int[] {1, 256}), "the token 256", vocabulary),
                generate("token -1", List.of(new int[] {-1}), "the token -1", vocabulary),
                prefill("no prompt", List.of(), "There are no prompts; give at least one"),
                prefill("an empty prompt", List.of(new int[0]), "no tokens; give at least one"),
                prefill("too long", List.of(wayTooLong), "has 513 tokens", "Shorten the prompt"),
                prefill(
                        "token 999",
                        List.of(PROMPT, new int[] {999}),
                        "Token id 999 is outside the vocabulary; allowed: 0 to 255"),
                BadInput.of(
                        "text without a tokenizer",
                        IllegalStateException.class,
                        m -> new Generator(languageModel(m)).generate("w1", SmallModel.config(1)),
                        "no tokenizer; give it one, or give token ids"),
                BadInput.of(
                        "stop strings without a tokenizer",
                        IllegalArgumentException.class,
                        m ->
                                new Generator(languageModel(m))
                                        .generate(
                                                List.of(PROMPT),
                                                GenerationConfig.builder()
                                                        .optStopStrings(List.of("x"))
                                                        .build()),
                        "Stop strings need text",
                        "give it one"));
    }

    private static Stream<BadInput<ZooModel<NDList, NDList>>> batches() {
        Class<IllegalArgumentException> argument = IllegalArgumentException.class;
        Class<IllegalStateException> state = IllegalStateException.class;
        String keep = "allowed: one or more of 0 to 1";
        String closed = "The batch is closed; prefill its prompts again";
        return Stream.of(
                batch(
                        "a step with one token for two rows",
                        argument,
                        b -> b.step(new int[] {1}),
                        "step got 1 tokens for 2 rows; give one a row"),
                batch(
                        "a step with an unknown token",
                        argument,
                        b -> b.step(new int[] {1, 256}),
                        "Token id 256 is outside the vocabulary; allowed: 0 to 255"),
                batch("keep row 2 of 2", argument, b -> b.keep(new int[] {0, 2}), "[0, 2]", keep),
                batch("keep nothing", argument, b -> b.keep(new int[0]), "[]", keep, "Close the"),
                batch("a step after close", state, closed(b -> b.step(new int[] {1, 1})), closed),
                batch("keep after close", state, closed(b -> b.keep(new int[] {0})), closed),
                batch("logits after close", state, closed(DecodingBatch::logits), closed),
                BadInput.of(
                        "a step beyond the context",
                        argument,
                        m -> {
                            int[] prompt = SmallModel.prompt(SmallModel.CONTEXT, 5);
                            try (DecodingBatch b = languageModel(m).prefill(List.of(prompt))) {
                                b.step(new int[] {1});
                            }
                        },
                        "reached the model's context of 512 tokens",
                        "use a shorter prompt"));
    }

    /** Does something to a sequence of the cache that has no tokens. */
    private static BadInput<ZooModel<NDList, NDList>> sequence(
            String name,
            Class<? extends Exception> type,
            BadInput.Action<CacheSequence> action,
            String... fragments) {
        return BadInput.of(
                name,
                type,
                m -> {
                    KvCache cache = ((LlamaLanguageModel) languageModel(m)).cache();
                    try (CacheSequence sequence = cache.newSequence()) {
                        action.run(sequence);
                    }
                },
                fragments);
    }

    private static Stream<BadInput<ZooModel<NDList, NDList>>> sequences() {
        String closed = "The sequence is closed; keep it open while it is used";
        return Stream.of(
                sequence(
                        "truncate to more than there is",
                        IllegalArgumentException.class,
                        s -> s.truncate(5),
                        "truncate(5): the sequence has 0 tokens; allowed: 0 to 0"),
                sequence(
                        "truncate to less than nothing",
                        IllegalArgumentException.class,
                        s -> s.truncate(-1),
                        "truncate(-1): the sequence has 0 tokens; allowed: 0 to 0"),
                sequence(
                        "truncate after close",
                        IllegalStateException.class,
                        s -> {
                            s.close();
                            s.truncate(0);
                        },
                        closed),
                sequence(
                        "fork after close",
                        IllegalStateException.class,
                        s -> {
                            s.close();
                            s.fork();
                        },
                        closed));
    }

    private static BadInput.Action<DecodingBatch> closed(BadInput.Action<DecodingBatch> action) {
        return batch -> {
            batch.close();
            action.run(batch);
        };
    }

    private static Stream<BadInput<ZooModel<NDList, NDList>>> blocks() {
        String ids = "Token ids must be INT64 [batch, tokens] with at least one token, not ";
        String vocabulary = "outside the vocabulary; allowed: 0 to 255";
        return Stream.of(
                block("one dimension", m -> m.create(new long[] {1, 2}), ids + "int64 (2)"),
                block("floats", m -> m.create(new float[][] {{1, 2}}), ids + "float32 (1, 2)"),
                block("no tokens", m -> m.create(new long[0]).reshape(1, 0), ids + "int64 (1, 0)"),
                block("token 256", m -> m.create(new long[][] {{256}}), "256 is " + vocabulary),
                block("2^40", m -> m.create(new long[][] {{1L << 40}}), vocabulary),
                block("-2^40", m -> m.create(new long[][] {{-1L << 40}}), vocabulary));
    }

    private static Stream<BadInput<ZooModel<NDList, NDList>>> settings() {
        return Stream.of(
                setting("temperature NaN", c -> c.optTemperature(Float.NaN), "at least 0"),
                setting("temperature -1", c -> c.optTemperature(-1), "temperature -1.0", "least 0"),
                setting("top_k -2", c -> c.optTopK(-2), "top_k -2", "at least 1, or 0"),
                setting("top_p 1.1", c -> c.optTopP(1.1f), "top_p 1.1", "at most 1"),
                setting("top_p NaN", c -> c.optTopP(Float.NaN), "top_p NaN", "at most 1"),
                setting("min_p -1", c -> c.optMinP(-1), "min_p -1.0", "from 0 to 1"),
                setting(
                        "repetition_penalty infinite",
                        c -> c.optRepetitionPenalty(Float.POSITIVE_INFINITY),
                        "repetition_penalty Infinity",
                        "above 0 (1 for none)"),
                setting("max_new_tokens -1", c -> c.optMaxNewTokens(-1), "-1", "at least 1"),
                setting("top_logprobs 101", c -> c.optTopLogProbs(101), "101", "from 0 to 100"),
                setting("eos -1", c -> c.optEosTokenIds(List.of(-1)), "eos_token_id -1"));
    }
}
