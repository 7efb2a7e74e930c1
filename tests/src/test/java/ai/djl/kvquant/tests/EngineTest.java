/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.Device;
import ai.djl.Model;
import ai.djl.engine.Engine;
import ai.djl.engine.EngineProvider;
import ai.djl.inference.Predictor;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.kvquant.engine.KvQuantEngineProvider;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.kvquant.translate.KvQuantTranslatorFactory;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import ai.djl.translate.NoopTranslator;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.ServiceLoader;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.api.io.TempDir;

/** Every way in which DJL's users choose an engine and its options works for KvQuant. */
class EngineTest {

    private static final String FACTORY = KvQuantTranslatorFactory.class.getName();

    @TempDir Path directory;
    private SmallModel model;

    @BeforeEach
    void copyModel() throws Exception {
        model = SmallModel.in(directory).tokenizer();
    }

    /** Criteria that say nothing of the engine. */
    private Criteria.Builder<NDList, NDList> plain() {
        return Criteria.builder()
                .setTypes(NDList.class, NDList.class)
                .optTranslatorFactory(new KvQuantTranslatorFactory());
    }

    private static String dtypeOf(ZooModel<?, ?> loaded) {
        LanguageModel lm = SmallModel.languageModel(loaded);
        try (DecodingBatch batch = lm.prefill(List.of(new int[] {1, 2, 3}))) {
            return batch.usage().dtype();
        }
    }

    private static void assertDtype(String dtype, Criteria<?, ?> criteria) throws Exception {
        try (ZooModel<?, ?> loaded = criteria.loadModel()) {
            assertInstanceOf(KvQuantBlock.class, loaded.getBlock());
            assertEquals(dtype, dtypeOf(loaded));
        }
    }

    @Test
    void isRegisteredBehindPyTorch() {
        assertTrue(
                ServiceLoader.load(EngineProvider.class).stream()
                        .anyMatch(p -> p.type() == KvQuantEngineProvider.class));
        assertTrue(Engine.hasEngine("KvQuant"));
        assertEquals("PyTorch", Engine.getDefaultEngineName());
        assertEquals("PyTorch", Engine.getInstance().getEngineName());
        Engine engine = Engine.getEngine("KvQuant");
        assertEquals("KvQuant", engine.getEngineName());
        assertSame(engine, new KvQuantEngineProvider().getEngine());
        assertEquals(Engine.getEngine("PyTorch").getVersion(), engine.getVersion());
        try (NDManager manager = engine.newBaseManager()) {
            assertEquals("PyTorch", manager.getEngine().getEngineName());
        }
    }

    @Test
    void engineAndOptionsOfCriteria() throws Exception {
        assertDtype("auto", plain().optModelPath(directory).optEngine("KvQuant").build());
        assertDtype(
                "rotatekv4",
                plain().optModelPath(directory)
                        .optEngine("KvQuant")
                        .optOption("kv_cache_dtype", "rotatekv4")
                        .build());
        assertDtype(
                "rotatekv3/fp16",
                plain().optModelPath(directory)
                        .optArgument("engine", "KvQuant")
                        .optArgument("kv_cache_dtype", "rotatekv3,fp16")
                        .build());
    }

    @Test
    void servingProperties() throws Exception {
        model.write("serving.properties", "engine=KvQuant\noption.kv_cache_dtype=rotatekv2\n");
        assertDtype("rotatekv2", plain().optModelPath(directory).build());
        model.write("serving.properties", "engine=KvQuant\nkv_cache_dtype=rotatekv3\n");
        assertDtype("rotatekv3", plain().optModelPath(directory).build());
    }

    @Test
    void urlQuery() throws Exception {
        String url = directory.toUri() + "?engine=KvQuant&kv_cache_dtype=rotatekv4/rotatekv2";
        assertDtype("rotatekv4/rotatekv2", plain().optModelUrls(url).build());
        Criteria<String, String> text =
                Criteria.builder()
                        .setTypes(String.class, String.class)
                        .optModelUrls(url + "&max_new_tokens=3&translatorFactory=" + FACTORY)
                        .build();
        try (ZooModel<String, String> loaded = text.loadModel();
                Predictor<String, String> predictor = loaded.newPredictor()) {
            assertEquals(3, words(predictor.predict("w5 w6 w7")));
        }
    }

    @Test
    void optionsWinOverArguments() throws Exception {
        model.write(
                "serving.properties",
                "engine=KvQuant\noption.kv_cache_dtype=rotatekv2\nkv_cache_dtype=rotatekv3\n");
        assertDtype("rotatekv2", plain().optModelPath(directory).build());
        assertDtype(
                "rotatekv2",
                plain().optModelPath(directory).optArgument("kv_cache_dtype", "fp16").build());
        assertDtype(
                "rotatekv4",
                plain().optModelPath(directory)
                        .optArgument("kv_cache_dtype", "fp16")
                        .optOption("kv_cache_dtype", "rotatekv4")
                        .build());
    }

    @Test
    void foreignOptionsAreIgnored() throws Exception {
        assertDtype(
                "fp16",
                plain().optModelPath(directory)
                        .optEngine("KvQuant")
                        .optOption("rolling_batch", "disable")
                        .optOption("tensor_parallel_degree", "1")
                        .optOption("mapLocation", "true")
                        .optArgument("batch_size", 4)
                        .optOption("kv_cache_dtype", "fp16")
                        .build());
    }

    @Test
    void modelByItself() throws Exception {
        for (Device device : new Device[] {null, Device.cpu()}) {
            try (Model loaded = Model.newInstance("small", device, "KvQuant")) {
                assertThrows(
                        IllegalArgumentException.class,
                        () -> loaded.load(directory, null, Map.of("kv_cache_dtype", "no")));
                loaded.load(directory, null, Map.of("kv_cache_dtype", "rotatekv4"));
                assertEquals("small", loaded.getName());
                assertEquals(Device.cpu(), loaded.getNDManager().getDevice());
                LanguageModel lm = ((KvQuantBlock) loaded.getBlock()).languageModel();
                assertEquals(256, lm.vocabularySize());
                assertEquals(512, lm.contextLength());
                assertEquals(4, SmallModel.greedy(lm, new int[] {1, 2}, 4).length);
                assertEquals(1, loaded.describeInput().size());
            }
        }
    }

    @Test
    void plainBlock() throws Exception {
        try (ZooModel<NDList, NDList> loaded = model.load(Map.of());
                Predictor<NDList, NDList> predictor = loaded.newPredictor(new NoopTranslator());
                NDManager mine = NDManager.newBaseManager(Device.cpu(), "PyTorch")) {
            NDArray ids = mine.create(new long[][] {{5, 6, 7}, {9, 8, 7}});
            NDList direct;
            try (NDManager inputs = mine.newSubManager()) {
                NDArray copy = ids.duplicate();
                copy.attach(inputs);
                direct = loaded.getBlock().forward(null, new NDList(copy), false);
                NDArray logits = direct.singletonOrThrow();
                assertSame(inputs, logits.getManager());
                assertEquals(new Shape(2, 256), logits.getShape());
                assertEquals(DataType.FLOAT32, logits.getDataType());
                direct = new NDList(logits.duplicate());
                direct.attach(mine);
            }
            NDArray predicted = predictor.predict(new NDList(ids)).singletonOrThrow();
            assertArrayEquals(direct.get(0).toFloatArray(), predicted.toFloatArray());
            LanguageModel lm = SmallModel.languageModel(loaded);
            try (DecodingBatch batch = lm.prefill(List.of(new int[] {9, 8, 7}))) {
                float[] row = predicted.get(1).toFloatArray();
                assertArrayEquals(batch.logits().toFloatArray(), row, 1e-4f);
            }
        }
    }

    @Test
    void keepsRowsWithTheirLogits() throws Exception {
        List<int[]> prompts = List.of(new int[] {1, 2, 3}, new int[] {4}, new int[] {5, 6});
        try (ZooModel<NDList, NDList> loaded = model.load(Map.of());
                DecodingBatch batch = SmallModel.languageModel(loaded).prefill(prompts)) {
            float[] all = batch.logits().toFloatArray();
            batch.keep(new int[] {2, 0});
            assertEquals(2, batch.size());
            assertEquals(2, batch.length(0));
            assertEquals(3, batch.length(1));
            assertEquals(new Shape(2, 256), batch.logits().getShape());
            float[] kept = batch.logits().toFloatArray();
            assertArrayEquals(Arrays.copyOfRange(all, 512, 768), Arrays.copyOf(kept, 256));
            assertArrayEquals(Arrays.copyOf(all, 256), Arrays.copyOfRange(kept, 256, 512));
        }
    }

    @Test
    void text() throws Exception {
        Criteria<String, String> criteria =
                model.criteria(String.class)
                        .optOption("kv_cache_dtype", "auto")
                        .optOption("max_new_tokens", "4")
                        .optArgument("ignore_eos", true)
                        .build();
        try (ZooModel<String, String> loaded = criteria.loadModel();
                Predictor<String, String> predictor = loaded.newPredictor()) {
            String first = predictor.predict("w10 w20 w30");
            assertEquals(4, words(first));
            String second = predictor.predict("w40 w50 w60 w70");
            assertNotEquals(first, second);
            List<String> both =
                    predictor.batchPredict(List.of("w10 w20 w30", "w40 w50 w60 w70", "w1"));
            assertEquals(3, both.size());
            assertEquals(List.of(first, second), both.subList(0, 2));
            int[] tokens =
                    SmallModel.greedy(SmallModel.languageModel(loaded), new int[] {10, 20, 30}, 4);
            String expected =
                    String.join(" ", Arrays.stream(tokens).mapToObj(t -> "w" + t).toList());
            assertEquals(expected, first.strip());
        }
    }

    private static int words(String text) {
        return text.strip().split("\\s+").length;
    }

    /** Every array that a model creates is gone once it is closed, failed loads included. */
    @Test
    void closedModelsLeaveNothingBehind() throws Exception {
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager(Device.cpu())) {
            NDManager root = manager.getParentManager();
            int before = root.getManagedArrays().size();
            useAndClose(5);
            long used = residentBytes();
            useAndClose(20);
            assertEquals(before, root.getManagedArrays().size());
            long grown = residentBytes() - used;
            // Each load maps pools of 32 MiB and touches a part.
            assertTrue(grown < 100L << 20, "grew by " + (grown >> 20) + " MiB");
        }
    }

    private void useAndClose(int times) throws Exception {
        Map<String, String> options =
                Map.of("kv_cache_dtype", "rotatekv4", "kv_recent_tokens", "64");
        for (int i = 0; i < times; ++i) {
            try (ZooModel<NDList, NDList> loaded = model.load(options)) {
                LanguageModel lm = SmallModel.languageModel(loaded);
                SmallModel.greedy(lm, SmallModel.prompt(400, i), 16);
                lm.prefill(List.of(new int[] {1})); // never closed
            }
            assertThrows(
                    IllegalArgumentException.class,
                    () -> model.load(Map.of("kv_cache_memory", "1k")));
        }
    }

    private static long residentBytes() throws Exception {
        System.gc();
        return Files.readAllLines(Path.of("/proc/self/status")).stream()
                .filter(line -> line.startsWith("VmRSS:"))
                .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")) * 1024)
                .findFirst()
                .orElseThrow();
    }

    @Test
    void closedModelsSaySo() throws Exception {
        ZooModel<NDList, NDList> loaded = model.load(Map.of());
        LanguageModel lm = SmallModel.languageModel(loaded);
        DecodingBatch batch = lm.prefill(List.of(new int[] {1, 2}));
        loaded.close();
        for (Executable use :
                List.<Executable>of(
                        () -> lm.prefill(List.of(new int[] {1})),
                        () -> batch.step(new int[] {1}),
                        batch::logits)) {
            IllegalStateException error = assertThrows(IllegalStateException.class, use);
            assertEquals("The model is closed; load it again.", error.getMessage());
        }
        batch.close();
        loaded.close();
    }
}
