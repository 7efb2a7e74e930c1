/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.kvquant.translate.KvQuantTranslatorFactory;
import ai.djl.ndarray.NDList;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import com.google.gson.Gson;
import com.google.gson.annotations.SerializedName;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Logits and greedy continuations agree with HuggingFace transformers in fp32. */
class GoldenModelTest {

    private static final float TOLERANCE = 1e-3f;
    private static final int NEW_TOKENS = 64;
    private static final Path GOLDEN =
            DefaultModel.repositoryRoot().resolve("tests/src/test/resources/golden");

    /** What transformers computed for a small checkpoint. */
    private record Golden(int[] prompt, int[] continuation) {}

    /** What transformers computed for the default model. */
    private record DefaultGolden(
            int[] prompt,
            int[] continuation,
            @SerializedName("top_ids") int[] topIds,
            @SerializedName("top_logits") float[] topLogits,
            @SerializedName("column_step") int columnStep,
            @SerializedName("column_logits") float[] columnLogits) {}

    static Stream<String> checkpoints() throws IOException {
        try (Stream<Path> files = Files.list(GOLDEN.resolve("checkpoints"))) {
            return files.map(p -> p.getFileName().toString()).sorted().toList().stream();
        }
    }

    private static ZooModel<NDList, NDList> load(Path directory) throws Exception {
        return Criteria.builder()
                .setTypes(NDList.class, NDList.class)
                .optModelPath(directory)
                .optEngine("KvQuant")
                .optTranslatorFactory(new KvQuantTranslatorFactory())
                .optOption("dtype", "fp32")
                .build()
                .loadModel();
    }

    private static LanguageModel languageModel(ZooModel<?, ?> model) {
        return ((KvQuantBlock) model.getBlock()).languageModel();
    }

    private static Golden golden(String name) throws IOException {
        Path file = GOLDEN.resolve("expected/" + name + ".json");
        return new Gson().fromJson(Files.readString(file), Golden.class);
    }

    private static float[][] goldenLogits(String name, int vocabulary) throws IOException {
        byte[] bytes = Files.readAllBytes(GOLDEN.resolve("expected/" + name + ".f32"));
        FloatBuffer floats = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
        float[][] rows = new float[floats.remaining() / vocabulary][vocabulary];
        for (float[] row : rows) {
            floats.get(row);
        }
        return rows;
    }

    @ParameterizedTest
    @MethodSource("checkpoints")
    void decodesLikeTransformers(String name) throws Exception {
        try (ZooModel<NDList, NDList> model = load(GOLDEN.resolve("checkpoints/" + name))) {
            LanguageModel lm = languageModel(model);
            Golden golden = golden(name);
            float[][] expected = goldenLogits(name, lm.vocabularySize());
            int[] prompt = golden.prompt();
            try (DecodingBatch batch = lm.prefill(List.of(new int[] {prompt[0]}))) {
                for (int i = 0; i < prompt.length; ++i) {
                    if (i > 0) {
                        batch.step(new int[] {prompt[i]});
                    }
                    String what = name + ", position " + i;
                    assertArrayEquals(expected[i], batch.logits().toFloatArray(), TOLERANCE, what);
                }
                // Up to the last but one token of the continuation, whose logits are the last
                // golden row.
                for (int i = 0; i < NEW_TOKENS - 1; ++i) {
                    batch.step(new int[] {golden.continuation()[i]});
                }
                assertArrayEquals(
                        expected[prompt.length], batch.logits().toFloatArray(), TOLERANCE, name);
            }
        }
    }

    @ParameterizedTest
    @MethodSource("checkpoints")
    void prefillsAndContinuesLikeTransformers(String name) throws Exception {
        try (ZooModel<NDList, NDList> model = load(GOLDEN.resolve("checkpoints/" + name))) {
            LanguageModel lm = languageModel(model);
            Golden golden = golden(name);
            float[][] expected = goldenLogits(name, lm.vocabularySize());
            int[] prompt = golden.prompt();
            int[] half = Arrays.copyOf(prompt, prompt.length / 2);
            // Ragged: both rows in one batch.
            try (DecodingBatch batch = lm.prefill(List.of(half, prompt))) {
                float[] logits = batch.logits().toFloatArray();
                int v = lm.vocabularySize();
                assertArrayEquals(
                        expected[half.length - 1], Arrays.copyOf(logits, v), TOLERANCE, name);
                assertArrayEquals(
                        expected[prompt.length - 1],
                        Arrays.copyOfRange(logits, v, 2 * v),
                        TOLERANCE,
                        name);
            }
            assertArrayEquals(golden.continuation(), greedy(lm, List.of(prompt)).get(0), name);
        }
    }

    private static List<int[]> greedy(LanguageModel lm, List<int[]> prompts) {
        GenerationConfig config =
                GenerationConfig.builder().optMaxNewTokens(NEW_TOKENS).optIgnoreEos(true).build();
        return new Generator(lm).generate(prompts, config).stream().map(r -> r.tokens()).toList();
    }

    @Test
    void defaultModelAgrees() throws Exception {
        String json = Files.readString(GOLDEN.resolve("default_model.json"));
        List<DefaultGolden> golden = List.of(new Gson().fromJson(json, DefaultGolden[].class));
        try (ZooModel<NDList, NDList> model = load(DefaultModel.directory())) {
            LanguageModel lm = languageModel(model);
            List<int[]> prompts = golden.stream().map(DefaultGolden::prompt).toList();
            try (DecodingBatch batch = lm.prefill(prompts)) {
                float[] logits = batch.logits().toFloatArray();
                for (int row = 0; row < prompts.size(); ++row) {
                    checkRow(golden.get(row), logits, row * lm.vocabularySize());
                }
            }
            List<int[]> continuations = greedy(lm, prompts);
            for (int row = 0; row < prompts.size(); ++row) {
                assertArrayEquals(golden.get(row).continuation(), continuations.get(row));
            }
        }
    }

    private static void checkRow(DefaultGolden expected, float[] logits, int from) {
        for (int i = 0; i < expected.topIds().length; ++i) {
            assertEquals(expected.topLogits()[i], logits[from + expected.topIds()[i]], TOLERANCE);
        }
        for (int i = 0; i < expected.columnLogits().length; ++i) {
            float logit = logits[from + i * expected.columnStep()];
            assertEquals(expected.columnLogits()[i], logit, TOLERANCE);
        }
    }
}
