/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.WeightType;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.UUID;
import java.util.function.IntUnaryOperator;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A small checkpoint of 1 kv head with 64 channels, calibrated and loaded again. */
class CalibratedOptionsTest {

    private static final Path CHECKPOINT =
            Path.of("")
                    .toAbsolutePath()
                    .resolveSibling("tests/src/test/resources/golden/checkpoints/f32");
    private static final int VOCABULARY = 256;
    private static final int CHANNELS = 64;
    private static final int PROMPT = 200;
    private static final FileTime LONG_AGO = FileTime.fromMillis(1_000_000_000_000L);

    @TempDir Path directory;
    private LlamaModel model;

    @BeforeEach
    void copyModel() throws Exception {
        Files.copy(CHECKPOINT.resolve("model.safetensors"), file("model.safetensors"));
        JsonObject config =
                JsonParser.parseString(Files.readString(CHECKPOINT.resolve("config.json")))
                        .getAsJsonObject();
        // A fingerprint of its own, of which the user's cache can hold nothing.
        config.addProperty("test_id", UUID.randomUUID().toString());
        Files.writeString(file("config.json"), config.toString());
        writeTokenizer();
        model = LlamaModel.load(TinySamples.MANAGER.newSubManager(), directory, WeightType.FP32);
    }

    @AfterEach
    void close() {
        model.close();
    }

    private Path file(String name) {
        return directory.resolve(name);
    }

    /** One token for each character. */
    private void writeTokenizer() throws IOException {
        JsonObject vocabulary = new JsonObject();
        for (int i = 0; i < VOCABULARY; ++i) {
            vocabulary.addProperty(Character.toString((char) i), i);
        }
        Files.writeString(
                file("tokenizer.json"),
                """
                {"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
                 "normalizer": null, "post_processor": null, "decoder": null,
                 "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\\\s\\\\S]"},
                                   "behavior": "Isolated", "invert": false},
                 "model": {"type": "WordLevel", "unk_token": "?", "vocab": %s}}
                """
                        .formatted(vocabulary));
    }

    private CacheOptions complete(String... pairs) throws Exception {
        return new CalibratedOptions(model, directory).complete(options(pairs));
    }

    private static CacheOptions options(String... pairs) {
        Map<String, String> values = new HashMap<>();
        for (int i = 0; i < pairs.length; i += 2) {
            values.put(pairs[i], pairs[i + 1]);
        }
        return new CacheOptions(values);
    }

    /** Logits of a token that reads a cache of these options. */
    private float[] logits(CacheOptions options) {
        // letters, for static codes clip what was not met in calibration
        int[] prompt = new Random(5).ints(PROMPT, 'a', 'z').toArray();
        try (LlamaLanguageModel cached = model.withCache(options);
                DecodingBatch batch = cached.prefill(List.of(prompt))) {
            batch.step(new int[] {'e'});
            return batch.logits().toFloatArray();
        }
    }

    private static double distance(float[] a, float[] b) {
        assertEquals(a.length, b.length);
        double sum = 0;
        for (int i = 0; i < a.length; ++i) {
            sum += Math.abs(a[i] - b[i]) / a.length;
        }
        return sum;
    }

    private String message(String... pairs) {
        return assertThrows(IllegalArgumentException.class, () -> complete(pairs)).getMessage();
    }

    private List<Path> written() throws IOException {
        try (Stream<Path> files = Files.list(directory)) {
            return files.filter(f -> f.getFileName().toString().startsWith("kvquant-")).toList();
        }
    }

    @Test
    void aModelCalibratesItselfOnce() throws Exception {
        Path file = file("kvquant-int2.safetensors");
        float[] first = logits(complete("kv_cache_dtype", "int2"));
        assertEquals(List.of(file), written());
        byte[] bytes = Files.readAllBytes(file);
        Files.setLastModifiedTime(file, LONG_AGO);
        // A second calibration would fail for want of a tokenizer.
        Files.delete(file("tokenizer.json"));
        assertArrayEquals(first, logits(complete("kv_cache_dtype", "int2")));
        assertEquals(LONG_AGO, Files.getLastModifiedTime(file));
        assertArrayEquals(bytes, Files.readAllBytes(file));
        assertThrows(IOException.class, () -> complete("kv_cache_dtype", "int4"));
    }

    @Test
    void theKeptFileTellsWhatItIs() throws Exception {
        complete("kv_cache_dtype", "int2");
        Calibration kept =
                CalibrationFile.read(
                        file("kvquant-int2.safetensors"), "int2", ModelFingerprint.of(directory));
        String hash = CalibrationText.sha256(CalibrationText.builtIn());
        assertEquals(hash, kept.metadata().get(CalibrationFile.TEXT_SHA256));
        // A context of 512 tokens takes four windows.
        assertEquals("2048", kept.metadata().get(CalibrationFile.TOKENS));
        for (int layer = 0; layer < 2; ++layer) {
            assertEquals(CHANNELS, kept.get(layer, "keys.mean").length);
            assertEquals(2 * CHANNELS, kept.get(layer, "keys.steps").length);
        }
        assertFalse(kept.has(2, "keys.mean"));
    }

    @Test
    void theFileIsWhatTheCacheUses() throws Exception {
        Path file = file("kvquant-int8.safetensors");
        float[] own = logits(complete("kv_cache_dtype", "int8/auto"));
        float[] exact = logits(complete("kv_cache_dtype", "auto"));
        Calibration kept = CalibrationFile.read(file, "int8", ModelFingerprint.of(directory));
        Calibration.Builder worse = new Calibration.Builder(kept.metadata());
        for (Calibration.Array array : kept.arrays()) {
            float[] values = kept.get(array.layer(), array.name());
            if (array.name().equals("keys.steps")) {
                for (int i = 1; i < values.length; i += 2) {
                    values[i] *= 20;
                }
            }
            worse.put(array.layer(), array.name(), values, array.shape());
        }
        CalibrationFile.write(file, worse.build());
        float[] spoilt = logits(complete("kv_cache_dtype", "int8/auto"));
        double before = distance(own, exact);
        double after = distance(spoilt, exact);
        assertTrue(after > 10 * before, before + " and with worse codes " + after);
    }

    @Test
    void withoutSelfCalibrationAFileIsNeeded() throws Exception {
        String message = message("kv_cache_dtype", "int2", "kv_self_calibration", "false");
        assertTrue(message.contains("kv_cache_dtype int2 needs a calibration"), message);
        assertTrue(message.contains("kv_self_calibration is false"), message);
        assertTrue(message.contains("kvq calibrate --model"), message);
        assertEquals(List.of(), written());
        complete("kv_cache_dtype", "int2");
        complete("kv_cache_dtype", "int2", "kv_self_calibration", "false");
    }

    @Test
    void aFileOfAnotherModelIsRefused() throws Exception {
        writeMean("kvquant-int2.safetensors", "int2", TinyCalibration.FINGERPRINT, i -> i);
        String beside = message("kv_cache_dtype", "int2");
        assertTrue(beside.contains("was calibrated for another model"), beside);
        assertTrue(beside.contains("kvquant-int2.safetensors"), beside);
        Path named = file("elsewhere");
        Files.move(file("kvquant-int2.safetensors"), named);
        String message = message("kv_cache_dtype", "int2", "kv_calibration", named.toString());
        assertTrue(message.contains("was calibrated for another model"), message);
    }

    @Test
    void rotatedKeysTakeTheOrderOfAFile() throws Exception {
        String[] pairs = {"kv_cache_dtype", "rotatekv2", "kv_group_size", "16"};
        float[] natural = logits(complete(pairs));
        assertEquals(List.of(), written());
        String fingerprint = ModelFingerprint.of(directory);
        String name = "kvquant-rotatekv2.safetensors";
        writeMean(name, "rotatekv2", fingerprint, i -> 0);
        assertArrayEquals(natural, logits(complete(pairs)));
        // Signs of the transform of channel 1 alternate: groups are made of every second channel.
        writeMean(name, "rotatekv2", fingerprint, i -> i == 1 ? 1 : 0);
        float[] ordered = logits(complete(pairs));
        assertTrue(distance(natural, ordered) > 1e-4);
        String[] asked = concat(pairs, "kv_order", "group");
        assertArrayEquals(ordered, logits(complete(asked)));
        assertArrayEquals(natural, logits(complete(concat(pairs, "kv_order", "natural"))));
    }

    @Test
    void anOrderThatIsAskedForIsCalibrated() throws Exception {
        String[] pairs = {"kv_cache_dtype", "rotatekv2", "kv_order", "layer"};
        String message = message(concat(pairs, "kv_self_calibration", "false"));
        assertTrue(message.contains("needs a calibration of the model"), message);
        complete(pairs);
        assertEquals(List.of(file("kvquant-rotatekv2.safetensors")), written());
    }

    private static String[] concat(String[] pairs, String... more) {
        return Stream.of(pairs, more).flatMap(Stream::of).toArray(String[]::new);
    }

    @Test
    void othersNeedNoCalibration() throws Exception {
        CacheOptions options = options("kv_cache_dtype", "fp16");
        assertSame(options, new CalibratedOptions(model, directory).complete(options));
        assertEquals(List.of(), written());
    }

    private void writeMean(String name, String preset, String model, IntUnaryOperator mean)
            throws IOException {
        Map<String, String> metadata = TinyCalibration.metadata();
        metadata.put(Calibration.DTYPE, preset);
        metadata.put(CalibrationFile.MODEL, model);
        float[] values = new float[CHANNELS];
        for (int i = 0; i < CHANNELS; ++i) {
            values[i] = mean.applyAsInt(i);
        }
        Calibration.Builder builder = new Calibration.Builder(metadata);
        builder.put(0, "keys.mean", values).put(1, "keys.mean", values);
        CalibrationFile.write(file(name), builder.build());
    }
}
