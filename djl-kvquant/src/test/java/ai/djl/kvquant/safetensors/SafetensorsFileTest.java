/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.safetensors;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.params.provider.Arguments.arguments;

import ai.djl.MalformedModelException;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

class SafetensorsFileTest {

    @TempDir Path dir;

    /** Writes a file of tensors a [2] and b [1] with one thing wrong. */
    private interface Damage {
        void apply(Path file) throws IOException;
    }

    @ParameterizedTest(name = "{0}")
    @MethodSource({"brokenFiles", "brokenHeaders"})
    void namesFileTensorAndProblem(String name, Damage damage, String message) throws Exception {
        Path file = dir.resolve("x.safetensors");
        damage.apply(file);
        MalformedModelException error =
                assertThrows(MalformedModelException.class, () -> SafetensorsFile.open(file));
        assertTrue(error.getMessage().contains(message), error.getMessage());
        assertTrue(error.getMessage().contains(file.toString()), error.getMessage());
        assertFalse(error.getMessage().contains("\n"), error.getMessage());
    }

    static Stream<Arguments> brokenFiles() {
        return Stream.of(
                length("empty file", "a safetensors file has at least 8 bytes", 0),
                length("half a length", "at least 8 bytes, this one 7. Download it again.", 7),
                length("half a header", "is truncated: its header needs", 50),
                length("half the data", "is truncated: tensor b ends at byte", -2),
                length("more data", "5 bytes follow the last tensor, b", 5),
                start("absurd length", "its header length 9223372036854775807", -1L >>> 1),
                start("negative length", "header length 18446744073709551615", -1),
                start("no header", "its header length 0 is not between 2 and", 0));
    }

    @Test
    void aGitLfsPointerIsNamed(@TempDir Path directory) throws Exception {
        Path file =
                Files.writeString(
                        directory.resolve("model.safetensors"),
                        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n");
        assertEquals(
                file
                        + " is a Git LFS pointer and not the file that it stands for. Run 'git lfs"
                        + " pull' in its repository, or download it again.",
                assertThrows(MalformedModelException.class, () -> SafetensorsFile.open(file))
                        .getMessage());
    }

    static Stream<Arguments> brokenHeaders() {
        return Stream.of(
                header("not JSON", "{\"a\":", "the header is not a valid JSON object of tensors"),
                header("not an object", "[1, 2]", "the header is not a valid JSON object"),
                header("lenient JSON", "{a:1}", "the header is not a valid JSON object"),
                header("two values", "{} {}", "not a valid JSON object"),
                header("broken metadata", "{'__metadata__':{'a'}}", "not a valid JSON object"),
                header("no dtype", tensor("'shape':[2],'data_offsets':[0,8]"), "tensor a lacks"),
                header(
                        "text for a shape",
                        entry("'2'", "0,8"),
                        "tensor a has a broken header entry"),
                header("fractional shape", entry("[2.5]", "0,8"), "tensor a has a broken header"),
                header("negative shape", entry("[-2]", "0,8"), "tensor a takes 8 bytes"),
                header("three offsets", entry("[2]", "0,8,9"), "tensor a has the data_offsets"),
                header("backward offsets", entry("[2]", "8,0"), "has the data_offsets [8, 0]"),
                header("negative offset", entry("[2]", "-8,0"), "has the data_offsets [-8, 0]"),
                header(
                        "wrong size",
                        entry("[3]", "0,8"),
                        "tensor a takes 8 bytes by its data_offsets, but F32[3] needs 12."),
                header(
                        "overflowing size",
                        entry("[4611686018427387904,4]", "0,8"),
                        "tensor a takes 8 bytes by its data_offsets, but F32["),
                header("beyond the end", entry("[4]", "0,16"), "tensor a ends at byte"),
                header(
                        "gap",
                        entry("[1]", "4,8"),
                        "tensor a leaves a gap of 4 bytes after the header"),
                header(
                        "overlap",
                        "{" + pair("a", "[1]", "0,4") + "," + pair("b", "[1]", "2,6") + "}",
                        "tensor b overlaps with a."),
                header(
                        "duplicate",
                        "{" + pair("a", "[1]", "0,4") + "," + pair("a", "[1]", "4,8") + "}",
                        "tensor a appears twice in the header"));
    }

    @Test
    void tensorsAtOddPositionsAreAligned() throws Exception {
        String header = "{\"xy\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
        for (int pad = 0; pad < 4; pad++) {
            Path file = dir.resolve("pad" + pad);
            byte[] data = {0, 0, 0, 64, 0, 0, 0, 65};
            RawSafetensors.write(file, header + " ".repeat(pad), data);
            TensorEntry entry = SafetensorsFile.open(file).entries().get("xy");
            ByteBuffer bytes = SafetensorsFile.map(entry, 0, 8);
            assertEquals(0, bytes.alignmentOffset(0, 4));
            assertTrue(bytes.isDirect() && bytes.isReadOnly());
            assertEquals(2f, bytes.getFloat(0));
            assertEquals(8f, bytes.getFloat(4));
            assertArrayEquals(new float[] {2, 8}, SafetensorsFile.floats(entry));
            assertEquals(8 + header.length() + pad, SafetensorsFile.open(file).dataStart());
        }
    }

    @Test
    void metadataAreTexts() throws Exception {
        Path file = dir.resolve("x.safetensors");
        RawSafetensors.write(
                file, "{\"__metadata__\":{\"a\":\"b\",\"c\":[1],\"d\":null}}", new byte[0]);
        assertEquals(Map.of("a", "b"), SafetensorsFile.open(file).metadata());
        RawSafetensors.write(file, "{\"__metadata__\":null}", new byte[0]);
        assertEquals(Map.of(), SafetensorsFile.open(file).metadata());
    }

    @Test
    void onlyF32TensorsAreFloats() throws Exception {
        Path file = dir.resolve("x.safetensors");
        String header = "{\"a\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4]}}";
        RawSafetensors.write(file, header, new byte[4]);
        TensorEntry entry = SafetensorsFile.open(file).entries().get("a");
        IllegalArgumentException error =
                assertThrows(IllegalArgumentException.class, () -> SafetensorsFile.floats(entry));
        assertEquals(
                "Tensor a int32[] in x.safetensors is not of type F32 with less than 2 GiB.",
                error.getMessage());
    }

    @Test
    void namesTheFileThatIsNotThere() {
        Path absent = dir.resolve("absent");
        FileNotFoundException error =
                assertThrows(FileNotFoundException.class, () -> SafetensorsFile.open(absent));
        assertEquals("No safetensors file " + absent + ".", error.getMessage());
    }

    /** A file of this length; negative: shorter by this, up to 5: longer. */
    private static Arguments length(String name, String message, int length) {
        Damage damage =
                file -> {
                    String header = "{" + pair("a", "[2]", "0,8") + "," + pair("b", "[1]", "8,12");
                    RawSafetensors.write(file, (header + "}").replace('\'', '"'), new byte[12]);
                    byte[] bytes = Files.readAllBytes(file);
                    boolean relative = length < 0 || name.startsWith("more");
                    int cut = relative ? bytes.length + length : length;
                    Files.write(file, Arrays.copyOf(bytes, cut));
                };
        return arguments(name, damage, message);
    }

    private static Arguments start(String name, String message, long length) {
        Damage damage =
                file -> {
                    byte[] data = new byte[64];
                    ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN).putLong(length);
                    Files.write(file, data);
                };
        return arguments(name, damage, message);
    }

    private static Arguments header(String name, String header, String message) {
        Damage damage = file -> RawSafetensors.write(file, header.replace('\'', '"'), new byte[8]);
        return arguments(name, damage, message);
    }

    private static String entry(String shape, String offsets) {
        return "{" + pair("a", shape, offsets) + "}";
    }

    private static String pair(String name, String shape, String offsets) {
        return "'%s':{'dtype':'F32','shape':%s,'data_offsets':[%s]}"
                .formatted(name, shape, offsets);
    }

    private static String tensor(String fields) {
        return "{'a':{" + fields + "}}";
    }
}
