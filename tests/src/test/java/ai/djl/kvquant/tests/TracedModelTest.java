/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.engine.KvQuantTracedBlock;
import ai.djl.kvquant.generate.CacheUsage;
import ai.djl.kvquant.translate.KvQuantTranslatorFactory;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.modality.nlp.generate.CausalLMOutput;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.repository.zoo.Criteria;
import ai.djl.translate.TranslateException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Models traced with keys and values as inputs: what DJL's own engine makes of them is right. */
class TracedModelTest {

    private static final Path TRACED =
            DefaultModel.repositoryRoot().resolve("tests/src/test/resources/golden/traced");

    @TempDir Path directory;

    private static Map<String, Object> sizes(String name) {
        return Map.of(
                "numLayers", 2, "numAttentionHeads", name.equals("gpt2") ? 2 : 1, "kvDim", 32);
    }

    /** The file alone in a directory, as DJL loads it. */
    private Searches load(String engine, String name, Map<String, String> options)
            throws Exception {
        Files.createDirectories(directory.resolve(name));
        Path copy = directory.resolve(name).resolve("model.pt");
        if (!Files.exists(copy)) {
            Files.copy(TRACED.resolve(name + ".pt"), copy);
        }
        return Searches.load(copy.getParent(), engine, options, sizes(name));
    }

    private static List<int[]> prompts() {
        List<int[]> prompts = List.of(SmallModel.prompt(21, 5), SmallModel.prompt(13, 6));
        prompts.forEach(prompt -> prompt[0] = 1);
        return prompts;
    }

    @ParameterizedTest
    @ValueSource(strings = {"gpt2", "llama"})
    void searchesLikePyTorch(String name) throws Exception {
        try (Searches expected = load("PyTorch", name, Map.of());
                Searches actual = load("KvQuant", name, Map.of())) {
            KvQuantTracedBlock block = (KvQuantTracedBlock) actual.anyBlock();
            for (String search : List.of("greedy", "beam", "contrastive")) {
                assertEquals(
                        expected.run(search, prompts(), 40),
                        actual.run(search, prompts(), 40),
                        search);
                assertEquals(0, block.heldSequences());
            }
        }
    }

    /** The logits behind a prompt and one more token, whose past has been in the cache. */
    private static float[] behind(Searches searches, int[] prompt) throws TranslateException {
        try (NDManager manager = searches.newManager()) {
            NDArray ids = Searches.padded(manager, List.of(prompt));
            int length = prompt.length;
            NDArray positions = manager.arange(0, length, 1, DataType.INT64).reshape(1, length);
            NDArray mask = manager.ones(new Shape(1, length), DataType.INT64);
            CausalLMOutput first = searches.predictor().predict(new NDList(ids, positions, mask));
            NDList next =
                    new NDList(
                            manager.create(new long[][] {{9}}),
                            manager.create(new long[][] {{length}}),
                            manager.ones(new Shape(1, length + 1), DataType.INT64));
            next.addAll(first.getPastKeyValuesList());
            return searches.predictor().predict(next).getLogits().get("0, 0").toFloatArray();
        }
    }

    private static double distance(float[] a, float[] b) {
        double sum = 0;
        for (int i = 0; i < a.length; ++i) {
            sum += (a[i] - b[i]) * (a[i] - b[i]);
        }
        return Math.sqrt(sum / a.length);
    }

    @ParameterizedTest
    @ValueSource(strings = {"gpt2", "llama"})
    void fewerBitsErrMore(String name) throws Exception {
        int[] prompt = SmallModel.prompt(140, 5);
        List<Double> errors = new ArrayList<>();
        try (Searches exact = load("PyTorch", name, Map.of())) {
            float[] expected = behind(exact, prompt);
            for (String dtype : List.of("auto", "fp16", "rotatekv4", "rotatekv3", "rotatekv2")) {
                Map<String, String> options = new HashMap<>(Map.of("kv_cache_dtype", dtype));
                if (dtype.startsWith("rotatekv")) {
                    options.put("kv_recent_tokens", "16");
                }
                try (Searches searches = load("KvQuant", name, options)) {
                    errors.add(distance(expected, behind(searches, prompt)));
                }
            }
        }
        assertTrue(errors.get(0) < 1e-5, errors.toString());
        assertTrue(errors.get(1) < 1e-2, errors.toString());
        for (int i = 1; i < errors.size(); ++i) {
            assertTrue(errors.get(i) > errors.get(i - 1), errors.toString());
        }
    }

    @Test
    void keepsFewBytesBetweenCalls() throws Exception {
        Map<String, String> options =
                Map.of("kv_cache_dtype", "rotatekv2", "kv_recent_tokens", "0");
        try (Searches searches = load("KvQuant", "gpt2", options);
                NDManager manager = searches.newManager()) {
            NDArray ids = Searches.padded(manager, List.of(SmallModel.prompt(128, 1)));
            NDArray positions = manager.arange(0, 128, 1, DataType.INT64).reshape(1, 128);
            NDArray mask = manager.ones(new Shape(1, 128), DataType.INT64);
            CausalLMOutput output = searches.predictor().predict(new NDList(ids, positions, mask));
            assertEquals(new Shape(1, 1, 128, 1), output.getPastKeyValuesList().get(0).getShape());
            CacheUsage usage = ((KvQuantTracedBlock) searches.anyBlock()).heldUsage();
            assertEquals(128 * 2 * 2 * 2 * 32 * 2, usage.fp16Bytes());
            assertTrue(usage.bytes() * 3 < usage.fp16Bytes(), usage.toString());
            assertEquals("rotatekv2", usage.dtype());
        }
    }

    @Test
    void refusesWhatATraceCanNotDo() throws Exception {
        Files.copy(TRACED.resolve("gpt2.pt"), directory.resolve("model.pt"));
        assertRefused(
                "kv_cache_dtype int2 with these options needs a calibration, which a traced model"
                        + " can not have.",
                Map.of("kv_cache_dtype", "int2"));
        assertRefused(
                "kv_sink_tokens is massive, but a traced model does not show the layers' inputs",
                Map.of("kv_cache_dtype", "rotatekv4", "kv_sink_tokens", "massive"));
        assertRefused(
                "dtype is bf16, but a traced model's weights keep the type",
                Map.of("dtype", "bf16"));
        for (String limit :
                List.of("max_running_requests", "max_waiting_requests", "prefill_chunk_tokens")) {
            assertRefused(
                    limit + " is 4, but the calls of a traced model are not scheduled",
                    Map.of(limit, "4"));
        }
        assertRefused("kvDim is '0'; allowed: whole numbers from 1.", Map.of("kvDim", "0"));
        assertFails("Set the argument numLayers", Map.of("numLayers", "3"), Map.of("numLayers", 2));
        assertFails(
                "Set the arguments numLayers, numAttentionHeads (the heads of keys) and kvDim",
                Map.of("numAttentionHeads", "4"),
                Map.of());
        assertFails("Set the option max_model_len higher", Map.of("max_model_len", "10"), Map.of());
    }

    /** The engine is the right one already: it is the types that do not go with a trace. */
    @ParameterizedTest
    @MethodSource("textTypes")
    void hasNoTranslatorsOfText(Class<?> input, Class<?> output) throws Exception {
        Files.copy(TRACED.resolve("gpt2.pt"), directory.resolve("model.pt"));
        Criteria.Builder<?, ?> criteria =
                Criteria.builder()
                        .setTypes(input, output)
                        .optModelPath(directory)
                        .optEngine("KvQuant")
                        .optTranslatorFactory(new KvQuantTranslatorFactory());
        sizes("gpt2").forEach(criteria::optArgument);
        IllegalArgumentException error =
                assertThrows(
                        IllegalArgumentException.class, () -> criteria.build().loadModel().close());
        assertTrue(error.getMessage().contains("is a traced model"), error.getMessage());
        assertTrue(error.getMessage().contains("PtGptTranslatorFactory"), error.getMessage());
    }

    static List<Arguments> textTypes() {
        return List.of(
                Arguments.of(String.class, String.class),
                Arguments.of(Input.class, Output.class),
                Arguments.of(NDList.class, CausalLMOutput.class));
    }

    private void assertRefused(String message, Map<String, String> options) {
        IllegalArgumentException error =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> Searches.load(directory, "KvQuant", options, sizes("gpt2")));
        assertTrue(error.getMessage().contains(message), error.getMessage());
    }

    /** Settings that are found to be wrong once the model runs. */
    private void assertFails(String message, Map<String, String> options, Map<String, ?> others)
            throws Exception {
        Map<String, Object> arguments = new HashMap<>(sizes("gpt2"));
        arguments.putAll(others);
        try (Searches searches = Searches.load(directory, "KvQuant", options, arguments)) {
            TranslateException error =
                    assertThrows(
                            TranslateException.class, () -> searches.run("greedy", prompts(), 8));
            assertTrue(error.getMessage().contains(message), error.getMessage());
            assertEquals(0, ((KvQuantTracedBlock) searches.anyBlock()).heldSequences());
        }
    }
}
