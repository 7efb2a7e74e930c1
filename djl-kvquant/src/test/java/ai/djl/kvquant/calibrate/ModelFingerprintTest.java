/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.MalformedModelException;
import ai.djl.kvquant.safetensors.SafetensorsFile;
import ai.djl.kvquant.safetensors.SafetensorsWriter;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ModelFingerprintTest {

    private static final String CONFIG =
            "{\"hidden_size\": 8, \"rope_scaling\": null, \"transformers_version\": \"4.1\"}";

    @TempDir Path root;
    private Path model;

    @BeforeEach
    void writeModel() throws IOException {
        model = Files.createDirectory(root.resolve("model"));
        Files.writeString(model.resolve("config.json"), CONFIG);
        writeWeights("model.safetensors", 300, 100);
    }

    @Test
    void isTheSameForACopy() throws Exception {
        String fingerprint = ModelFingerprint.of(model);
        assertTrue(fingerprint.matches("[0-9a-f]{64}"), fingerprint);
        assertEquals(fingerprint, ModelFingerprint.of(model));
        Path copy = Files.createDirectory(root.resolve("copy"));
        for (String name : new String[] {"config.json", "model.safetensors"}) {
            Files.copy(model.resolve(name), copy.resolve(name));
        }
        // what a model directory holds beside
        Files.writeString(copy.resolve("tokenizer.json"), "{}");
        Files.writeString(copy.resolve("kvquant-int2.safetensors"), "x");
        Files.writeString(copy.resolve("consolidated.safetensors"), "x");
        assertEquals(fingerprint, ModelFingerprint.of(copy));
    }

    @Test
    void dependsOnTheConfigurationButNotOnHowItIsWritten() throws Exception {
        String fingerprint = ModelFingerprint.of(model);
        writeConfig("{\"transformers_version\":\"5.0\",\n\"use_cache\":true,\"hidden_size\":8}");
        assertEquals(fingerprint, ModelFingerprint.of(model));
        writeConfig("{\"hidden_size\": 9}");
        String changed = ModelFingerprint.of(model);
        assertNotEquals(fingerprint, changed);
        writeConfig("{\"hidden_size\": 9, \"rope_scaling\": {\"factor\": [1, 2]}}");
        String nested = ModelFingerprint.of(model);
        assertNotEquals(changed, nested);
        writeConfig("{\"hidden_size\": 9, \"rope_scaling\": {\"factor\": [2, 1]}}");
        assertNotEquals(nested, ModelFingerprint.of(model));
    }

    @Test
    void dependsOnShapes() throws Exception {
        String fingerprint = ModelFingerprint.of(model);
        writeWeights("model.safetensors", 100, 300);
        assertNotEquals(fingerprint, ModelFingerprint.of(model));
    }

    @Test
    void dependsOnTheEndsOfTheDataAndTheStartOfEachTensor() throws Exception {
        // 400 KB: far more than the two ends
        writeWeights("model.safetensors", 50_000, 50_000);
        String fingerprint = ModelFingerprint.of(model);
        Path file = model.resolve("model.safetensors");
        long start = SafetensorsFile.open(file).dataStart();
        long size = Files.size(file);
        long second = start + 4 * 50_000;
        long[] positions = {start, start + 65_535, second, second + 4095, size - 65_536, size - 1};
        for (long position : positions) {
            flip(file, position);
            assertNotEquals(fingerprint, ModelFingerprint.of(model), "byte " + position);
            flip(file, position);
        }
        assertEquals(fingerprint, ModelFingerprint.of(model));
    }

    @Test
    void dependsOnEveryShard() throws Exception {
        Files.delete(model.resolve("model.safetensors"));
        writeWeights("model-00001-of-00002.safetensors", 3, 4);
        writeWeights("model-00002-of-00002.safetensors", 5, 6);
        String fingerprint = ModelFingerprint.of(model);
        Files.writeString(
                model.resolve("model.safetensors.index.json"),
                "{\"weight_map\":{\"a\":\"model-00002-of-00002.safetensors\","
                        + "\"b\":\"model-00001-of-00002.safetensors\"}}");
        Files.writeString(model.resolve("consolidated.safetensors"), "x");
        assertEquals(fingerprint, ModelFingerprint.of(model));
        Path last = model.resolve("model-00002-of-00002.safetensors");
        flip(last, Files.size(last) - 1);
        assertNotEquals(fingerprint, ModelFingerprint.of(model));
    }

    @Test
    void namesWhatIsMissing() throws Exception {
        Path empty = Files.createDirectory(root.resolve("empty"));
        FileNotFoundException config =
                assertThrows(FileNotFoundException.class, () -> ModelFingerprint.of(empty));
        assertEquals(
                "No config.json in " + empty + "; a HuggingFace model is needed.",
                config.getMessage());
        Files.writeString(empty.resolve("config.json"), "{}");
        Files.writeString(empty.resolve("kvquant-int2.safetensors"), "x");
        FileNotFoundException weights =
                assertThrows(FileNotFoundException.class, () -> ModelFingerprint.of(empty));
        assertEquals(
                "No *.safetensors in " + empty + "; a HuggingFace model is needed.",
                weights.getMessage());
    }

    @Test
    void namesDamagedFiles() throws Exception {
        Path index = model.resolve("model.safetensors.index.json");
        Files.write(model.resolve("model.safetensors"), new byte[3]);
        assertDamaged(model.resolve("model.safetensors") + " is truncated: ");
        Files.delete(model.resolve("model.safetensors"));
        Files.writeString(index, "{}");
        assertDamaged(index + " has no weight_map from tensors to files.");
        writeConfig("[]");
        assertDamaged(model.resolve("config.json") + " is not a JSON object.");
        writeConfig("");
        assertDamaged(model.resolve("config.json") + " is not a JSON object.");
    }

    private void assertDamaged(String message) {
        MalformedModelException error =
                assertThrows(MalformedModelException.class, () -> ModelFingerprint.of(model));
        assertTrue(error.getMessage().startsWith(message), error.getMessage());
    }

    private void writeConfig(String config) throws IOException {
        Files.writeString(model.resolve("config.json"), config);
    }

    private void writeWeights(String name, int first, int second) throws IOException {
        float[] a = new float[first];
        float[] b = new float[second];
        for (int i = 0; i < Math.max(first, second); i++) {
            a[Math.min(i, first - 1)] = i;
            b[Math.min(i, second - 1)] = -i;
        }
        new SafetensorsWriter(Map.of("format", "pt"))
                .put(name + ".a", a, first)
                .put(name + ".b", b, second)
                .write(model.resolve(name));
    }

    private static void flip(Path file, long position) throws IOException {
        try (RandomAccessFile data = new RandomAccessFile(file.toFile(), "rw")) {
            data.seek(position);
            int value = data.read();
            data.seek(position);
            data.write(value ^ 1);
        }
    }
}
