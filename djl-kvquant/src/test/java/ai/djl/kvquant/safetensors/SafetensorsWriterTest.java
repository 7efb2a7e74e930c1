/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.safetensors;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.ndarray.types.DataType;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class SafetensorsWriterTest {

    @TempDir Path dir;

    @Test
    void writesTheBytesOfTheFormat() throws Exception {
        Path file = dir.resolve("x.safetensors");
        new SafetensorsWriter(Map.of("k", "v<\"\u00e4"))
                .put("b", new float[] {1, -2}, 2, 1)
                .put("a", new float[] {0.5f})
                .write(file);
        String header =
                "{\"__metadata__\":{\"k\":\"v<\\\"\u00e4\"},"
                        + "\"b\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]},"
                        + "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[8,12]}}";
        int length = header.getBytes(StandardCharsets.UTF_8).length;
        String padded = header + " ".repeat((8 - length % 8) % 8);
        byte[] data =
                ByteBuffer.allocate(12)
                        .order(ByteOrder.LITTLE_ENDIAN)
                        .putFloat(1)
                        .putFloat(-2)
                        .putFloat(0.5f)
                        .array();
        Path expected = dir.resolve("expected");
        RawSafetensors.write(expected, padded, data);
        assertArrayEquals(Files.readAllBytes(expected), Files.readAllBytes(file));
    }

    @Test
    void dataBeginAtAMultipleOf8() throws Exception {
        for (int extra = 0; extra < 9; extra++) {
            Path file = dir.resolve("x" + extra);
            new SafetensorsWriter(Map.of("k", "v".repeat(extra)))
                    .put("a", new float[] {extra})
                    .write(file);
            assertEquals(0, SafetensorsFile.open(file).dataStart() % 8);
        }
    }

    @Test
    void everyBitSurvives() throws Exception {
        float[] values = new float[(1 << 17) + 3]; // more than are written at once
        for (int i = 0; i < values.length; i++) {
            values[i] = Float.intBitsToFloat(i * 0x9E3779B1);
        }
        values[0] = -0f;
        values[1] = Float.NaN;
        values[2] = Float.NEGATIVE_INFINITY;
        values[3] = Float.MIN_VALUE;
        Path file = dir.resolve("x");
        new SafetensorsWriter(Map.of())
                .put("empty", new float[0], 0, 3)
                .put("a", values, values.length)
                .write(file);
        SafetensorsFile read = SafetensorsFile.open(file);
        assertEquals(List.of("empty", "a"), new ArrayList<>(read.entries().keySet()));
        assertEquals(Map.of(), read.metadata());
        assertTrue(read.entries().get("empty").hasShape(0, 3));
        TensorEntry entry = read.entries().get("a");
        assertEquals(DataType.FLOAT32, entry.dtype());
        ByteBuffer bytes = SafetensorsFile.map(entry, 0, (int) entry.bytes());
        for (float value : values) {
            assertEquals(Float.floatToRawIntBits(value), bytes.getInt());
        }
    }

    @Test
    void takesThePlaceOfAnOlderFile() throws Exception {
        Path file = dir.resolve("x");
        Files.writeString(file, "old");
        new SafetensorsWriter(Map.of("a", "b")).write(file);
        assertEquals(Map.of("a", "b"), SafetensorsFile.open(file).metadata());
        assertEquals(List.of(file), files());
    }

    @Test
    void leavesNothingBehindWhenItFails() throws Exception {
        Path occupied = Files.createDirectory(dir.resolve("x"));
        Path inside = Files.writeString(occupied.resolve("inside"), "old");
        SafetensorsWriter writer = new SafetensorsWriter(Map.of()).put("a", new float[1], 1);
        assertThrows(IOException.class, () -> writer.write(occupied));
        assertEquals(List.of(occupied), files());
        assertEquals("old", Files.readString(inside));
        assertThrows(IOException.class, () -> writer.write(dir.resolve("absent/x")));
        assertEquals(List.of(occupied), files());
    }

    @Test
    void refusesNamesAndShapesThatDoNotFit() {
        SafetensorsWriter writer = new SafetensorsWriter(Map.of()).put("a", new float[2], 2);
        assertMessage("can not have another tensor a.", () -> writer.put("a", new float[2], 2));
        assertMessage(
                "can not have another tensor __metadata__.",
                () -> writer.put("__metadata__", new float[2], 2));
        assertMessage(
                "Tensor b has 2 elements, which do not make the shape [3, 1].",
                () -> writer.put("b", new float[2], 3, 1));
        assertMessage(
                "do not make the shape [-1, -2].", () -> writer.put("b", new float[2], -1, -2));
        assertMessage(
                "do not make the shape [4294967296, 4294967296].",
                () -> writer.put("b", new float[0], 1L << 32, 1L << 32));
        assertMessage(
                "do not make the shape [65536, 65536, 2].",
                () -> writer.put("b", new float[0], 1 << 16, 1 << 16, 2));
    }

    private static void assertMessage(String message, Runnable action) {
        IllegalArgumentException error = assertThrows(IllegalArgumentException.class, action::run);
        assertTrue(error.getMessage().endsWith(message), error.getMessage());
        assertFalse(error.getMessage().contains("\n"), error.getMessage());
    }

    private List<Path> files() throws IOException {
        try (Stream<Path> files = Files.list(dir)) {
            return files.toList();
        }
    }
}
