/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.safetensors;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.TreeMap;
import java.util.UUID;

/**
 * Writes a safetensors file of F32 tensors. Equal contents make equal files; a reader sees either
 * the whole file or none.
 */
public final class SafetensorsWriter {

    private static final Gson GSON = new GsonBuilder().disableHtmlEscaping().create();
    private static final int ALIGNMENT = 8;
    private static final int FLOATS_AT_ONCE = 1 << 16;

    private final Map<String, String> metadata;
    private final Map<String, Tensor> tensors = new LinkedHashMap<>();

    private record Tensor(FloatBuffer values, long[] shape) {
        long bytes() {
            return (long) Float.BYTES * values.remaining();
        }
    }

    /**
     * Creates a writer without tensors.
     *
     * @param metadata texts that the file shall carry; written in the order of their keys
     */
    public SafetensorsWriter(Map<String, String> metadata) {
        this.metadata = new TreeMap<>(metadata);
    }

    /**
     * Adds a tensor; tensors are written in the order in which they are added.
     *
     * @param name its name
     * @param values its elements in row-major order; not copied, not to be modified until written
     * @param shape its dimensions, outermost first
     * @return this writer
     * @throws IllegalArgumentException if the name is taken or the shape has another number of
     *     elements
     */
    public SafetensorsWriter put(String name, float[] values, long... shape) {
        return put(name, FloatBuffer.wrap(values), shape);
    }

    /**
     * Adds a tensor; tensors are written in the order in which they are added.
     *
     * @param name its name
     * @param values its elements in row-major order, from position to limit; not copied, not to be
     *     modified until written
     * @param shape its dimensions, outermost first
     * @return this writer
     * @throws IllegalArgumentException if the name is taken or the shape has another number of
     *     elements
     */
    public SafetensorsWriter put(String name, FloatBuffer values, long... shape) {
        if (SafetensorsHeader.METADATA.equals(name) || tensors.containsKey(name)) {
            throw new IllegalArgumentException(
                    "A safetensors file can not have another tensor " + name + ".");
        }
        if (elements(shape) != values.remaining()) {
            throw new IllegalArgumentException(
                    "Tensor "
                            + name
                            + " has "
                            + values.remaining()
                            + " elements, which do not make the shape "
                            + Arrays.toString(shape)
                            + ".");
        }
        tensors.put(name, new Tensor(values.slice(), shape.clone()));
        return this;
    }

    /**
     * Writes the file: to a temporary file in its directory, which then takes its place. What was
     * there before stays if anything fails.
     *
     * @param file the file, which may exist; its directory must
     * @throws IOException if the file cannot be written
     */
    public void write(Path file) throws IOException {
        Path target = file.toAbsolutePath();
        // not Files.createTempFile, whose files only their owner can read
        String name = "." + target.getFileName() + "." + UUID.randomUUID() + ".tmp";
        Path temporary = target.resolveSibling(name);
        try {
            writeNew(temporary);
            Files.move(temporary, target, StandardCopyOption.ATOMIC_MOVE);
        } catch (IOException | RuntimeException | Error e) {
            try {
                Files.deleteIfExists(temporary);
            } catch (IOException suppressed) {
                e.addSuppressed(suppressed);
            }
            throw e;
        }
    }

    /** The number of elements, or -1 if no buffer has that many. */
    private static long elements(long[] shape) {
        long elements = 1;
        for (long dimension : shape) {
            if (dimension < 0 || dimension > Integer.MAX_VALUE) {
                return -1;
            }
            elements = Math.min(elements * dimension, Integer.MAX_VALUE);
        }
        return elements;
    }

    private void writeNew(Path file) throws IOException {
        try (FileChannel channel =
                FileChannel.open(file, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE)) {
            byte[] header = header().getBytes(StandardCharsets.UTF_8);
            int padding = -header.length & (ALIGNMENT - 1);
            ByteBuffer start = littleEndian(ALIGNMENT + header.length + padding);
            start.putLong(header.length + padding).put(header);
            while (start.hasRemaining()) {
                start.put((byte) ' ');
            }
            writeFully(channel, start.flip());
            for (Tensor tensor : tensors.values()) {
                writeData(channel, tensor.values());
            }
            // a rename must not reach the disk before the data do
            channel.force(true);
        }
    }

    private String header() {
        JsonObject header = new JsonObject();
        if (!metadata.isEmpty()) {
            header.add(SafetensorsHeader.METADATA, GSON.toJsonTree(metadata));
        }
        long begin = 0;
        for (Map.Entry<String, Tensor> named : tensors.entrySet()) {
            Tensor tensor = named.getValue();
            JsonObject entry = new JsonObject();
            entry.addProperty("dtype", "F32");
            entry.add("shape", array(tensor.shape()));
            entry.add("data_offsets", array(begin, begin + tensor.bytes()));
            header.add(named.getKey(), entry);
            begin += tensor.bytes();
        }
        return GSON.toJson(header);
    }

    private static JsonArray array(long... values) {
        JsonArray array = new JsonArray();
        for (long value : values) {
            array.add(value);
        }
        return array;
    }

    private static void writeData(FileChannel channel, FloatBuffer values) throws IOException {
        ByteBuffer part = littleEndian(Float.BYTES * Math.min(values.limit(), FLOATS_AT_ONCE));
        for (int from = 0; from < values.limit(); from += FLOATS_AT_ONCE) {
            int length = Math.min(FLOATS_AT_ONCE, values.limit() - from);
            part.clear().limit(Float.BYTES * length);
            part.asFloatBuffer().put(values.slice(from, length));
            writeFully(channel, part);
        }
    }

    private static ByteBuffer littleEndian(int bytes) {
        return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }

    private static void writeFully(FileChannel channel, ByteBuffer bytes) throws IOException {
        while (bytes.hasRemaining()) {
            channel.write(bytes);
        }
    }
}
