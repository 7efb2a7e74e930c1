/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.safetensors;

import ai.djl.MalformedModelException;
import ai.djl.ndarray.types.DataType;
import com.google.gson.JsonParseException;
import com.google.gson.Strictness;
import com.google.gson.stream.JsonReader;
import com.google.gson.stream.JsonToken;
import java.io.IOException;
import java.io.StringReader;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * The JSON header of a safetensors file: its parsing, and what must hold for it.
 *
 * @param entries the tensors by name, in the order of the header
 * @param metadata the texts under {@code __metadata__}
 */
record SafetensorsHeader(Map<String, TensorEntry> entries, Map<String, String> metadata) {

    static final String METADATA = "__metadata__";

    /**
     * Parses a header.
     *
     * @param path the file, for errors and entries
     * @param header the text
     * @param dataStart the position in the file to which offsets are relative
     * @return the header
     * @throws MalformedModelException if the header is broken
     */
    static SafetensorsHeader parse(Path path, String header, long dataStart)
            throws MalformedModelException {
        Map<String, TensorEntry> entries = new LinkedHashMap<>();
        Map<String, String> metadata = new LinkedHashMap<>();
        try (JsonReader reader = new JsonReader(new StringReader(header))) {
            reader.setStrictness(Strictness.STRICT);
            reader.beginObject();
            while (reader.hasNext()) {
                String name = reader.nextName();
                if (METADATA.equals(name)) {
                    readMetadata(reader, metadata);
                } else if (entries.put(name, entry(reader, path, name, dataStart)) != null) {
                    throw malformed(path, name, "appears twice in the header");
                }
            }
            reader.endObject();
            if (reader.peek() != JsonToken.END_DOCUMENT) {
                throw new MalformedModelException(path + ": something follows the header's JSON.");
            }
        } catch (JsonParseException | IOException | IllegalStateException e) {
            throw new MalformedModelException(
                    path + ": the header is not a valid JSON object of tensors.", e);
        }
        return new SafetensorsHeader(entries, metadata);
    }

    /** The format allows texts only; what else a file has there says nothing about its tensors. */
    private static void readMetadata(JsonReader reader, Map<String, String> metadata)
            throws IOException {
        if (reader.peek() != JsonToken.BEGIN_OBJECT) {
            reader.skipValue();
            return;
        }
        reader.beginObject();
        while (reader.hasNext()) {
            String key = reader.nextName();
            if (reader.peek() == JsonToken.STRING) {
                metadata.put(key, reader.nextString());
            } else {
                reader.skipValue();
            }
        }
        reader.endObject();
    }

    private static TensorEntry entry(JsonReader reader, Path path, String name, long dataStart)
            throws IOException, MalformedModelException {
        try {
            return readEntry(reader, path, name, dataStart);
        } catch (IllegalStateException | NumberFormatException e) {
            throw malformed(path, name, "has a broken header entry (" + reader.getPath() + ")");
        }
    }

    private static TensorEntry readEntry(JsonReader reader, Path path, String name, long dataStart)
            throws IOException, MalformedModelException {
        String dtype = null;
        long[] shape = null;
        long[] offsets = null;
        reader.beginObject();
        while (reader.hasNext()) {
            switch (reader.nextName()) {
                case "dtype" -> dtype = reader.nextString();
                case "shape" -> shape = longs(reader);
                case "data_offsets" -> offsets = longs(reader);
                default -> reader.skipValue();
            }
        }
        reader.endObject();
        if (dtype == null || shape == null || offsets == null) {
            throw malformed(path, name, "lacks one of dtype, shape and data_offsets");
        }
        if (offsets.length != 2 || offsets[0] < 0 || offsets[1] < offsets[0]) {
            throw malformed(
                    path,
                    name,
                    "has the data_offsets "
                            + Arrays.toString(offsets)
                            + ", not a begin and an end");
        }
        DataType type = dataType(path, name, dtype);
        long bytes = offsets[1] - offsets[0];
        if (bytes != size(shape, type)) {
            throw malformed(
                    path,
                    name,
                    "takes "
                            + bytes
                            + " bytes by its data_offsets, but "
                            + dtype
                            + Arrays.toString(shape)
                            + " needs "
                            + (size(shape, type) < 0 ? "another number" : size(shape, type)));
        }
        if (offsets[1] > Long.MAX_VALUE - dataStart) {
            throw malformed(path, name, "ends beyond any file, at " + offsets[1]);
        }
        return new TensorEntry(name, type, shape, path, dataStart + offsets[0], bytes);
    }

    private static long[] longs(JsonReader reader) throws IOException {
        List<Long> values = new ArrayList<>();
        reader.beginArray();
        while (reader.hasNext()) {
            if (reader.peek() != JsonToken.NUMBER) {
                throw new IllegalStateException("not a number");
            }
            values.add(reader.nextLong());
        }
        reader.endArray();
        return values.stream().mapToLong(Long::longValue).toArray();
    }

    private static DataType dataType(Path path, String name, String dtype)
            throws MalformedModelException {
        return switch (dtype) {
            case "BOOL" -> DataType.BOOLEAN;
            case "U8" -> DataType.UINT8;
            case "I8" -> DataType.INT8;
            case "U16" -> DataType.UINT16;
            case "I16" -> DataType.INT16;
            case "F16" -> DataType.FLOAT16;
            case "BF16" -> DataType.BFLOAT16;
            case "U32" -> DataType.UINT32;
            case "I32" -> DataType.INT32;
            case "F32" -> DataType.FLOAT32;
            case "U64" -> DataType.UINT64;
            case "I64" -> DataType.INT64;
            case "F64" -> DataType.FLOAT64;
            default ->
                    throw malformed(
                            path,
                            name,
                            "has the dtype "
                                    + dtype
                                    + ", which is not supported; weights must be F32, F16 or BF16");
        };
    }

    /** The size in bytes, or -1 if the shape is negative or too large. */
    private static long size(long[] shape, DataType type) {
        long bytes = type.getNumOfBytes();
        for (long dimension : shape) {
            if (dimension < 0) {
                return -1;
            }
            try {
                bytes = Math.multiplyExact(bytes, dimension);
            } catch (ArithmeticException e) {
                return -1;
            }
        }
        return bytes;
    }

    /**
     * Checks that the tensors fill the file without gap or overlap, as the format demands.
     *
     * @param path the file, for errors
     * @param dataStart the position of the first byte after the header
     * @param fileSize the size of the file
     * @throws MalformedModelException if they do not
     */
    void checkLayout(Path path, long dataStart, long fileSize) throws MalformedModelException {
        List<TensorEntry> sorted = new ArrayList<>(entries.values());
        sorted.sort(
                Comparator.comparingLong(TensorEntry::offset).thenComparing(TensorEntry::bytes));
        long end = dataStart;
        String previous = "the header";
        for (TensorEntry entry : sorted) {
            if (entry.offset() < end) {
                throw malformed(path, entry.name(), "overlaps with " + previous);
            }
            if (entry.offset() > end) {
                throw malformed(
                        path,
                        entry.name(),
                        "leaves a gap of " + (entry.offset() - end) + " bytes after " + previous);
            }
            end = entry.offset() + entry.bytes();
            previous = entry.name();
            if (end > fileSize) {
                throw new MalformedModelException(
                        path
                                + " is truncated: tensor "
                                + entry.name()
                                + " ends at byte "
                                + end
                                + ", the file has "
                                + fileSize
                                + ". Download it again.");
            }
        }
        if (end < fileSize) {
            throw new MalformedModelException(
                    path
                            + ": "
                            + (fileSize - end)
                            + " bytes follow the last tensor, "
                            + previous
                            + "; the file is damaged.");
        }
    }

    private static MalformedModelException malformed(Path path, String tensor, String problem) {
        return new MalformedModelException(path + ": tensor " + tensor + " " + problem + ".");
    }
}
