/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.Calibration;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class CalibrationStoreTest {

    private static final String FINGERPRINT = TinyCalibration.FINGERPRINT;

    @TempDir Path root;
    private Path model;
    private Path cache;

    @BeforeEach
    void createDirectories() throws IOException {
        model = Files.createDirectory(root.resolve("model"));
        cache = root.resolve("cache");
    }

    @Test
    void findsNothingAtFirst() throws Exception {
        assertEquals(Optional.empty(), store(null).find());
        assertEquals(Optional.empty(), store(null).load());
        assertEquals(
                Optional.empty(),
                new CalibrationStore(null, null, "int2", FINGERPRINT, null).load());
    }

    @Test
    void keepsBesideTheModelAndReadsFromThere() throws Exception {
        Path expected = model.resolve("kvquant-int2.safetensors");
        assertEquals(Optional.of(expected), store(null).keep(TinyCalibration.create()));
        assertEquals(Optional.of(expected), store(null).find());
        assertEquals(0.25f, store(null).load().orElseThrow().get(11, "key.step")[0]);
        assertFalse(Files.exists(cache));
        assertEquals(List.of(expected), files(model));
    }

    @Test
    void keepsInTheUsersCacheWhereTheModelCanNotBeWritten() throws Exception {
        Path expected = cache.resolve("djl-kvquant/calibration/0123456789abcdef-int2.safetensors");
        for (Path directory : new Path[] {null, root.resolve("absent")}) {
            CalibrationStore store =
                    new CalibrationStore(null, directory, "int2", FINGERPRINT, cache);
            assertEquals(Optional.of(expected), store.keep(TinyCalibration.create()));
            assertEquals(Optional.of(expected), store.find());
            assertTrue(store.load().isPresent());
            assertEquals(List.of(expected), files(expected.getParent()));
        }
    }

    @Test
    void keepsNothingWhereNothingCanBeWritten() throws Exception {
        Files.writeString(cache, "a file, not a directory");
        CalibrationStore store =
                new CalibrationStore(null, root.resolve("absent"), "int2", FINGERPRINT, cache);
        assertEquals(Optional.empty(), store.keep(TinyCalibration.create()));
        CalibrationStore nowhere = new CalibrationStore(null, null, "int2", FINGERPRINT, null);
        assertEquals(Optional.empty(), nowhere.keep(TinyCalibration.create()));
    }

    @Test
    void refusesToKeepWhatIsNoCalibration() {
        Calibration broken =
                new Calibration.Builder(TinyCalibration.metadata())
                        .put(0, "x", new float[] {Float.NaN})
                        .build();
        assertThrows(IllegalArgumentException.class, () -> store(null).keep(broken));
    }

    @Test
    void prefersTheUsersChoice() throws Exception {
        store(null).keep(TinyCalibration.create());
        Path named = root.resolve("mine.safetensors");
        Map<String, String> metadata = TinyCalibration.metadata();
        metadata.put(CalibrationFile.TOKENS, "7");
        CalibrationFile.write(named, TinyCalibration.of(metadata));
        assertEquals(Optional.of(named), store(named).find());
        assertEquals("7", store(named).load().orElseThrow().metadata().get("tokens"));
    }

    @Test
    void theUsersChoiceMustExist() throws Exception {
        store(null).keep(TinyCalibration.create());
        Path absent = root.resolve("absent.safetensors");
        IllegalArgumentException error =
                assertThrows(IllegalArgumentException.class, () -> store(absent).load());
        assertEquals(
                "kv_calibration is '"
                        + absent
                        + "', which is not a file; allowed: the path of a calibration file. Run kvq"
                        + " calibrate --model DIR --text FILE --kv-cache-dtype int2.",
                error.getMessage());
    }

    @Test
    void prefersTheFileBesideTheModelAndNeverPassesItOver() throws Exception {
        keepInCache(TinyCalibration.create());
        Map<String, String> metadata = TinyCalibration.metadata();
        metadata.put(CalibrationFile.MODEL, TinyCalibration.OTHER_FINGERPRINT);
        Path beside = model.resolve("kvquant-int2.safetensors");
        CalibrationFile.write(beside, TinyCalibration.of(metadata));
        IllegalArgumentException error =
                assertThrows(IllegalArgumentException.class, () -> store(null).load());
        assertTrue(error.getMessage().startsWith(beside + " was calibrated for another model"));
        Files.write(beside, new byte[3]);
        assertThrows(IOException.class, () -> store(null).load());
        Files.delete(beside);
        assertTrue(store(null).load().isPresent());
    }

    @Test
    void calibratesAgainWhereItsOwnFileDoesNotFit() throws Exception {
        Map<String, String> metadata = TinyCalibration.metadata();
        // the same 16 digits, as a damaged or older cache may have
        metadata.put(CalibrationFile.MODEL, FINGERPRINT.substring(0, 16) + "0".repeat(48));
        Path kept = keepInCache(TinyCalibration.of(metadata));
        assertEquals(Optional.empty(), store(null).load());
        Files.write(kept, new byte[3]);
        assertEquals(Optional.empty(), store(null).load());
        // the user may name that file; then it must fit
        assertThrows(IOException.class, () -> store(kept).load());
        keepInCache(TinyCalibration.create());
        assertTrue(store(null).load().isPresent());
    }

    @Test
    void everyPresetHasAFileNameOfItsOwn() throws Exception {
        for (String preset :
                new String[] {
                    "latent1.5", "latent2-band16", "svdq2.25/fp16", "rotatekv4/rotatekv2"
                }) {
            Map<String, String> metadata = TinyCalibration.metadata();
            metadata.put(Calibration.DTYPE, preset);
            CalibrationStore store = new CalibrationStore(null, model, preset, FINGERPRINT, cache);
            Path file = store.keep(TinyCalibration.of(metadata)).orElseThrow();
            assertEquals(model, file.getParent());
            assertTrue(store.load().isPresent());
        }
        assertEquals(
                List.of(
                        "kvquant-latent1.5.safetensors",
                        "kvquant-latent2-band16.safetensors",
                        "kvquant-rotatekv4_rotatekv2.safetensors",
                        "kvquant-svdq2.25_fp16.safetensors"),
                files(model).stream().map(file -> file.getFileName().toString()).toList());
    }

    @Test
    void otherNamesAreNoPresets() {
        for (String preset : new String[] {"", "..", "a/../b", "a/b/c", "/a", "A b", "a_b"}) {
            assertThrows(
                    IllegalArgumentException.class,
                    () -> new CalibrationStore(null, model, preset, FINGERPRINT, cache),
                    preset);
        }
    }

    private CalibrationStore store(Path named) {
        return new CalibrationStore(named, model, "int2", FINGERPRINT, cache);
    }

    private Path keepInCache(Calibration calibration) {
        return new CalibrationStore(null, null, "int2", FINGERPRINT, cache)
                .keep(calibration)
                .orElseThrow();
    }

    private static List<Path> files(Path directory) throws IOException {
        try (Stream<Path> files = Files.list(directory)) {
            return files.sorted().toList();
        }
    }
}
