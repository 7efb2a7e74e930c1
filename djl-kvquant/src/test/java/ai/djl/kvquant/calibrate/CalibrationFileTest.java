/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.safetensors.SafetensorsFile;
import ai.djl.kvquant.safetensors.SafetensorsWriter;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class CalibrationFileTest {

    private static final String REMEDY =
            "Run kvq calibrate --model DIR --text FILE --kv-cache-dtype int2.";

    @TempDir Path dir;
    private Path file;

    @BeforeEach
    void setFile() {
        file = dir.resolve("kvquant-int2.safetensors");
    }

    @Test
    void readsBackEveryBit() throws Exception {
        Calibration written = TinyCalibration.create();
        CalibrationFile.write(file, written);
        Calibration read = read();
        assertEquals(written.metadata(), read.metadata());
        List<Calibration.Array> expected = written.arrays();
        List<Calibration.Array> arrays = read.arrays();
        assertEquals(3, arrays.size());
        for (int i = 0; i < 3; i++) {
            assertEquals(expected.get(i).layer(), arrays.get(i).layer());
            assertEquals(expected.get(i).name(), arrays.get(i).name());
            assertArrayEquals(expected.get(i).shape(), arrays.get(i).shape());
            assertEquals(expected.get(i).values(), arrays.get(i).values());
        }
        int negativeZero = Float.floatToRawIntBits(read.get(0, "key.mean")[0]);
        assertEquals(Float.floatToRawIntBits(-0f), negativeZero);
    }

    @Test
    void namesTensorsAndMetadataAsDocumented() throws Exception {
        CalibrationFile.write(file, TinyCalibration.create());
        SafetensorsFile opened = SafetensorsFile.open(file);
        assertEquals(
                List.of("layers.0.empty", "layers.0.key.mean", "layers.11.key.step"),
                List.copyOf(opened.entries().keySet()));
        Map<String, String> metadata = new HashMap<>(opened.metadata());
        assertEquals("kvquant-calibration", metadata.remove("format"));
        assertEquals("1", metadata.remove("version"));
        assertTrue(metadata.remove("content_sha256").matches("[0-9a-f]{64}"));
        assertEquals(TinyCalibration.metadata(), metadata);
    }

    @Test
    void equalCalibrationsMakeEqualFiles() throws Exception {
        CalibrationFile.write(file, TinyCalibration.create());
        byte[] first = Files.readAllBytes(file);
        CalibrationFile.write(file, read());
        assertArrayEquals(first, Files.readAllBytes(file));
    }

    @Test
    void anAbsentFileIsNamed() {
        FileNotFoundException error = assertThrows(FileNotFoundException.class, this::read);
        assertEquals("No calibration file " + file + ". " + REMEDY, error.getMessage());
    }

    @Test
    void otherFilesAreRefused() throws Exception {
        Files.writeString(file, "This is a text, no calibration.");
        assertIoError(" is not a safetensors file: its header length ");
        new SafetensorsWriter(Map.of("format", "pt")).put("a", new float[1], 1).write(file);
        assertRefused(
                " is not a calibration file: its metadata has the format pt, not"
                        + " kvquant-calibration. ");
        new SafetensorsWriter(Map.of()).write(file);
        assertRefused(" is not a calibration file: its metadata has the format null, not");
    }

    @Test
    void otherVersionsPresetsAndModelsAreRefused() throws Exception {
        CalibrationFile.write(file, TinyCalibration.create());
        byte[] bytes = Files.readAllBytes(file);
        replace("\"version\":\"1\"", "\"version\":\"7\"");
        assertRefused(" is a calibration of format version 7; allowed here: 1. ");
        Files.write(file, bytes);
        IllegalArgumentException preset =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> CalibrationFile.read(file, "int4", TinyCalibration.FINGERPRINT));
        assertEquals(
                file
                        + " is a calibration of kv_cache_dtype int2; allowed here: int4. Run kvq"
                        + " calibrate --model DIR --text FILE --kv-cache-dtype int4.",
                preset.getMessage());
        IllegalArgumentException model =
                assertThrows(
                        IllegalArgumentException.class,
                        () ->
                                CalibrationFile.read(
                                        file, "int2", TinyCalibration.OTHER_FINGERPRINT));
        assertEquals(
                file
                        + " was calibrated for another model: its fingerprint is 0123456789ab,"
                        + " this model has fedcba987654. "
                        + REMEDY,
                model.getMessage());
    }

    @Test
    void everyTruncationIsFound() throws Exception {
        CalibrationFile.write(file, TinyCalibration.create());
        byte[] bytes = Files.readAllBytes(file);
        for (int length = 0; length < bytes.length; length++) {
            Files.write(file, Arrays.copyOf(bytes, length));
            assertIoError(" is truncated: ");
        }
    }

    @Test
    void everyFlippedBitOfTheContentsIsFound() throws Exception {
        CalibrationFile.write(file, TinyCalibration.create());
        byte[] bytes = Files.readAllBytes(file);
        int headerEnd = (int) SafetensorsFile.open(file).dataStart();
        while (bytes[headerEnd - 1] == ' ') {
            headerEnd--; // padding holds nothing
        }
        int paddingEnd = (int) SafetensorsFile.open(file).dataStart();
        for (int i = 0; i < bytes.length; i++) {
            if (i >= headerEnd && i < paddingEnd) {
                continue;
            }
            byte[] damaged = bytes.clone();
            damaged[i] ^= (byte) (1 << i % 8);
            Files.write(file, damaged);
            Exception error = assertThrows(Exception.class, this::read, "byte " + i);
            assertTrue(
                    error instanceof IOException || error instanceof IllegalArgumentException,
                    error::toString);
            assertTrue(error.getMessage().contains(file.toString()), error.getMessage());
        }
    }

    @Test
    void otherTensorsAndTypesAreDamage() throws Exception {
        Map<String, String> metadata = header();
        new SafetensorsWriter(metadata).put("layer.0.x", new float[1], 1).write(file);
        assertIoError(" is damaged: tensor layer.0.x float32[1] in ");
        new SafetensorsWriter(metadata).put("layers.0.a b", new float[1], 1).write(file);
        assertIoError(" is damaged: tensor layers.0.a b float32[1] in ");
        new SafetensorsWriter(metadata).put("layers.0.x", new float[1], 1).write(file);
        assertIoError(" is damaged: its contents do not have the hash that it states. ");
        new SafetensorsWriter(metadata).put("layers.0.xyz", new float[1], 1).write(file);
        replace("F32", "I32");
        assertIoError(" is damaged: tensor layers.0.xyz int32[1] in ");
    }

    @Test
    void valuesThatAreNoNumbersAreFound() throws Exception {
        for (float value : new float[] {Float.NaN, Float.NEGATIVE_INFINITY}) {
            float[] values = {1, value};
            new SafetensorsWriter(header()).put("layers.3.x", values, 2).write(file);
            assertIoError(
                    " is damaged: tensor layers.3.x holds "
                            + value
                            + " at index 1, but all values must be finite. ");
        }
    }

    @Test
    void whatCouldNotBeReadIsNotWritten() throws Exception {
        CalibrationFile.write(file, TinyCalibration.create());
        byte[] before = Files.readAllBytes(file);
        Calibration infinite =
                new Calibration.Builder(TinyCalibration.metadata())
                        .put(1, "x", new float[] {Float.POSITIVE_INFINITY})
                        .build();
        IllegalArgumentException error =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> CalibrationFile.write(file, infinite));
        assertEquals(
                "The calibration can not be written to "
                        + file
                        + ": tensor layers.1.x holds Infinity at index 0, but all values must be"
                        + " finite.",
                error.getMessage());
        Map<String, String> metadata = TinyCalibration.metadata();
        metadata.remove(CalibrationFile.TOKENS);
        error =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> CalibrationFile.write(file, TinyCalibration.of(metadata)));
        assertEquals(
                "A calibration file needs the metadata kv_cache_dtype, model, text_sha256, tokens,"
                        + " settings; tokens is missing.",
                error.getMessage());
        assertArrayEquals(before, Files.readAllBytes(file));
    }

    @Test
    void aFailedWriteLeavesNothingBehind() throws Exception {
        Files.createDirectories(file.resolve("occupied"));
        assertThrows(
                IOException.class, () -> CalibrationFile.write(file, TinyCalibration.create()));
        try (Stream<Path> files = Files.list(dir)) {
            assertEquals(List.of(file), files.toList());
        }
    }

    private Calibration read() throws IOException {
        return CalibrationFile.read(file, "int2", TinyCalibration.FINGERPRINT);
    }

    private Map<String, String> header() {
        Map<String, String> metadata = TinyCalibration.metadata();
        metadata.put("format", "kvquant-calibration");
        metadata.put("version", "1");
        return metadata;
    }

    private void replace(String from, String to) throws IOException {
        String text = Files.readString(file, StandardCharsets.ISO_8859_1);
        assertTrue(text.contains(from), text);
        Files.writeString(file, text.replace(from, to), StandardCharsets.ISO_8859_1);
    }

    private void assertIoError(String message) {
        assertError(assertThrows(IOException.class, this::read), message);
    }

    private void assertRefused(String message) {
        assertError(assertThrows(IllegalArgumentException.class, this::read), message);
    }

    private void assertError(Exception error, String message) {
        assertTrue(error.getMessage().startsWith(file.toString()), error.getMessage());
        assertTrue(error.getMessage().contains(message), error.getMessage());
        assertTrue(error.getMessage().endsWith(REMEDY), error.getMessage());
        assertFalse(error.getMessage().contains("\n"), error.getMessage());
    }

    @ParameterizedTest
    @CsvSource({
        "int2,int2",
        "latent2-layer,latent2:kv_basis=layer",
        "latent1.5-band16,latent1.5:kv_basis=band16",
        "kvquant3-kvquant2-dense,kvquant3/kvquant2:kv_outliers=0",
        "int2-kvquant4-outliers0.02,int2/kvquant4:kv_outliers=0.02",
    })
    void theRemedyNamesTheCacheAsTheCommandLineTakesIt(String name, String cache) {
        String remedy = CalibrationFile.remedy(name);
        assertTrue(remedy.endsWith(" --kv-cache-dtype " + cache + "."), remedy);
    }
}
