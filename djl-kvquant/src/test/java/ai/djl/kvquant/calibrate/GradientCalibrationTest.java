/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.llama.LlamaGradients;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.ndarray.NDManager;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** A small checkpoint of 2 layers, calibrated with gradients. */
class GradientCalibrationTest {

    private static final Path CHECKPOINT =
            Path.of("")
                    .toAbsolutePath()
                    .resolveSibling("tests/src/test/resources/golden/checkpoints/gqa3-tied");
    private static final int LAYERS = 2;

    private final List<int[]> windows =
            IntStream.range(0, 3).mapToObj(i -> new Random(i).ints(100, 0, 256).toArray()).toList();
    private LlamaModel model;

    @BeforeEach
    void load() throws Exception {
        NDManager manager = TinySamples.MANAGER.newSubManager();
        model = LlamaModel.load(manager, CHECKPOINT, WeightType.AUTO);
    }

    @AfterEach
    void close() {
        model.close();
    }

    /** Gradients with respect to keys of all layers, last one first, and of the first window. */
    private List<float[]> keyGradients(int stride) {
        List<float[]> found = new ArrayList<>();
        try (BackwardPass pass = new BackwardPass(model, windows, stride)) {
            pass.start(() -> {});
            for (int layer = 0; layer < LAYERS; ++layer) {
                try (NDManager scope = pass.newManager()) {
                    List<LlamaGradients.Output> outputs = pass.back(scope);
                    assertEquals(windows.size(), outputs.size());
                    outputs.forEach(output -> found.add(output.keys().toFloatArray()));
                }
            }
        }
        return found;
    }

    @Test
    void inputsThatWereNotKeptAreComputedAgain() {
        List<float[]> kept = keyGradients(1);
        List<float[]> again = keyGradients(2);
        assertEquals(LAYERS * windows.size(), kept.size());
        for (int i = 0; i < kept.size(); ++i) {
            assertArrayEquals(kept.get(i), again.get(i), 1e-9f);
            assertTrue(IntStream.range(0, 100).anyMatch(t -> again.get(0)[t] != 0));
        }
    }

    @Test
    void metadataAndProgressTellOfGradients() {
        List<CacheOptions> caches =
                List.of(CacheOptions.of("latent2"), CacheOptions.of("rotatekv2"));
        List<Integer> progress = new ArrayList<>();
        Calibrator calibrator = new Calibrator(model, windows);
        List<Calibration> found =
                calibrator.run(caches, Sensitivity.GRADIENTS, Map.of("a", "b"), progress::add);
        assertEquals(List.of(1, 2, 3, 4), progress);
        assertEquals("{\"gradients\":true}", settings(found.get(0)));
        assertEquals("{\"gradients\":false}", settings(found.get(1)));
        List<Calibration> forward = calibrator.run(caches, Map.of("a", "b"), layers -> {});
        assertEquals("{\"gradients\":false}", settings(forward.get(0)));
        for (int layer = 0; layer < LAYERS; ++layer) {
            // where gradients have no say, they change nothing
            float[] expected = forward.get(1).get(layer, "keys.mean");
            assertArrayEquals(expected, found.get(1).get(layer, "keys.mean"), 1e-4f);
            float[] basis = found.get(0).get(layer, "keys.basis");
            float[] other = forward.get(0).get(layer, "keys.basis");
            double difference =
                    IntStream.range(0, basis.length)
                            .mapToDouble(i -> Math.abs(basis[i] - other[i]))
                            .average()
                            .orElseThrow();
            assertTrue(difference > 1e-2, "layer " + layer + " has the same basis");
        }
    }

    private static String settings(Calibration calibration) {
        return calibration.metadata().get(CalibrationFile.SETTINGS);
    }

    @Test
    void gradientsMustBeOfUse() {
        List<CacheOptions> caches =
                List.of(CacheOptions.of("rotatekv2"), CacheOptions.of("rotatekv3"));
        Exception e =
                assertThrows(
                        IllegalArgumentException.class,
                        () ->
                                new Calibrator(model, windows)
                                        .run(caches, Sensitivity.GRADIENTS, Map.of(), l -> {}));
        assertTrue(e.getMessage().contains("rotatekv2, rotatekv3"), e.getMessage());
    }

    /** Keys and values of pairs, each in its own bits. */
    @Test
    void codebooksAreFittedToTheSidesThatUseThem() {
        List<CacheOptions> caches =
                Stream.of("kvquant3/kvquant2", "kvquant2/int4", "int2/kvquant4", "fp16/kvquant3")
                        .map(CacheOptions::of)
                        .toList();
        Calibrator calibrator = new Calibrator(model, windows);
        List<Calibration> found =
                calibrator.run(caches, Sensitivity.GRADIENTS, Map.of(), layers -> {});
        List<Calibration> forward = calibrator.run(caches, Map.of(), layers -> {});
        int[] keyLevels = {8, 4, 0, 0};
        int[] valueLevels = {4, 0, 16, 8};
        for (int i = 0; i < caches.size(); ++i) {
            assertEquals("{\"gradients\":true}", settings(found.get(i)));
            for (int layer = 0; layer < LAYERS; ++layer) {
                String name = caches.get(i).dtype().name() + ", layer " + layer;
                assertEquals(keyLevels[i], count(found.get(i), layer, "keys.levels"), name);
                assertEquals(valueLevels[i], count(found.get(i), layer, "values.levels"), name);
                assertEquals(keyLevels[i], count(forward.get(i), layer, "keys.levels"), name);
                assertEquals(i == 2, found.get(i).has(layer, "keys.widths"), name);
            }
        }
        float[] levels = found.get(0).get(0, "keys.levels");
        float[] other = forward.get(0).get(0, "keys.levels");
        assertTrue(Math.abs(levels[3] - other[3]) > 1e-4, levels[3] + " and " + other[3]);
    }

    private static int count(Calibration calibration, int layer, String name) {
        return calibration.has(layer, name) ? calibration.get(layer, name).length : 0;
    }
}
