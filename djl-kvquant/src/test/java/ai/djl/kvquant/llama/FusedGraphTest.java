/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import ai.djl.Device;
import ai.djl.engine.Engine;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.generate.ChunkedPrefill;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.torch.Operators;
import ai.djl.kvquant.torch.TorchArchive;
import ai.djl.kvquant.torch.TorchModule;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

/** The layers of GPUs, computed on the CPU, against those of the CPU. */
class FusedGraphTest {

    private static final Path CHECKPOINTS =
            Path.of("")
                    .toAbsolutePath()
                    .resolveSibling("tests/src/test/resources/golden/checkpoints");
    private static final Graph FUSED = new Graph(true, WeightType.FP32, Graph.Attention.CPU);
    private static final float TOLERANCE = 2e-3f;

    private static NDManager manager;

    @BeforeAll
    static void open() {
        manager = Engine.getEngine("PyTorch").newBaseManager(Device.cpu());
    }

    @AfterAll
    static void close() {
        manager.close();
    }

    static List<Path> checkpoints() {
        try (Stream<Path> paths = Files.list(CHECKPOINTS)) {
            return paths.filter(path -> Files.isRegularFile(path.resolve("config.json")))
                    .sorted()
                    .toList();
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    /** Logits after a prompt and a step, what a layer makes of it, and what evaluation does. */
    private static List<float[]> logits(LlamaModel model) {
        List<float[]> all = new ArrayList<>();
        int[] prompt = new int[50];
        for (int i = 0; i < prompt.length; ++i) {
            prompt[i] = (7 * i + 3) % model.config().vocabSize();
        }
        CacheOptions options = CacheOptions.of("auto").forOneSequence(256);
        try (LlamaLanguageModel language = model.withCache(options);
                DecodingBatch batch = language.prefill(List.of(prompt))) {
            all.add(batch.logits().toFloatArray());
            batch.step(new int[] {1});
            all.add(batch.logits().toFloatArray());
        }
        try (LlamaLanguageModel language = model.withCache(options);
                ChunkedPrefill parts = language.startPrefill(prompt, 16)) {
            while (parts.remaining() > 0) {
                parts.advance(7);
            }
            try (DecodingBatch batch = parts.finish()) {
                all.add(batch.logits().toFloatArray());
            }
        }
        try (LlamaLanguageModel language = model.withCache(options);
                CacheSequence sequence = language.cache().newSequence();
                NDManager scope = manager.newSubManager()) {
            for (int[] tokens : new int[][] {prompt, {1}}) {
                TokenStates states =
                        language.append(scope, List.of(sequence), List.of(tokens), true);
                all.add(states.logits().toFloatArray());
                all.add(states.hidden().toFloatArray());
            }
        }
        try (LlamaLayers layers = new LlamaLayers(model, prompt.length);
                NDManager scope = layers.newManager()) {
            NDArray hidden = layers.embed(scope, prompt);
            all.add(layers.run(scope, 0, hidden).hidden().toFloatArray());
            all.add(layers.outputGram(scope, 0).toFloatArray());
        }
        try (LlamaEvaluator evaluator = model.evaluator(CacheOptions.of("auto"), 64);
                NDManager scope = evaluator.newManager()) {
            all.add(evaluator.hiddenStates(scope, prompt).toFloatArray());
        }
        return all;
    }

    @ParameterizedTest
    @MethodSource("checkpoints")
    void agreesWithTheLayersOfTheCpu(Path checkpoint) throws Exception {
        try (LlamaModel plain = LlamaModel.load(manager, checkpoint, WeightType.FP32);
                LlamaModel fused = LlamaModel.load(manager, checkpoint, WeightType.FP32, FUSED)) {
            List<float[]> expected = logits(plain);
            List<float[]> found = logits(fused);
            for (int i = 0; i < expected.size(); ++i) {
                assertArrayEquals(expected.get(i), found.get(i), TOLERANCE, "part " + i);
            }
        }
    }

    /** libtorch resolves operators and checks types when it loads a module. */
    @ParameterizedTest
    @EnumSource(value = WeightType.class, names = "AUTO", mode = EnumSource.Mode.EXCLUDE)
    void codeOfGpusIsWellFormed(WeightType type) {
        LlamaCode code = new LlamaCode(RandomModel.LLAMA_3_8B.config(), Graph.gpu(type));
        try (Operators operators = new Operators(manager)) {
            assertFalse(operators.onGpu());
            TorchModule.load(manager, TorchArchive.write(code.methods())).close();
        }
    }

    @Test
    void randomWeightsAreTheSameEachTime() {
        float[] first;
        try (LlamaModel model =
                LlamaModel.random(manager, RandomModel.SMOLLM2_135M, WeightType.AUTO)) {
            assertEquals(30, model.config().numLayers());
            first = firstLogits(model);
        }
        try (LlamaModel model =
                LlamaModel.random(manager, RandomModel.SMOLLM2_135M, WeightType.AUTO)) {
            assertArrayEquals(first, firstLogits(model));
        }
    }

    private static float[] firstLogits(LlamaModel model) {
        CacheOptions options = CacheOptions.of("fp16").forOneSequence(64);
        try (LlamaLanguageModel language = model.withCache(options);
                DecodingBatch batch = language.randomBatch(1, 20)) {
            batch.step(new int[] {5});
            assertEquals(21, batch.length(0));
        }
        try (LlamaLanguageModel language = model.withCache(options);
                DecodingBatch batch = language.prefill(List.of(new int[] {5, 6, 7}))) {
            return batch.logits().toFloatArray();
        }
    }
}
