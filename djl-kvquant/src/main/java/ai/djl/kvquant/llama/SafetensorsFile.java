/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.MalformedModelException;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Collections;
import java.util.Map;

/**
 * The header of one safetensors file, checked: the tensors fill the data section without gap or
 * overlap. The data are mapped on demand; nothing stays open, so there is nothing to close.
 *
 * <p>Format: 8 bytes with the header's length, little endian; the header, a JSON object from tensor
 * name to dtype, shape and data offsets; the data.
 */
public final class SafetensorsFile {

    /** The limit of the reference implementation. */
    private static final long MAX_HEADER = 100_000_000;

    /** The most that is mapped at once to compare tensors. */
    private static final int PART = 1 << 28;

    private final Path path;
    private final Map<String, TensorEntry> entries;

    private SafetensorsFile(Path path, Map<String, TensorEntry> entries) {
        this.path = path;
        this.entries = Collections.unmodifiableMap(entries);
    }

    /**
     * Reads and checks the header of a file.
     *
     * @param path the file
     * @return the file's tensors
     * @throws FileNotFoundException if there is no such file
     * @throws MalformedModelException if the file is truncated or its header is broken
     * @throws IOException if the file cannot be read
     */
    public static SafetensorsFile open(Path path) throws IOException, MalformedModelException {
        if (!Files.isRegularFile(path)) {
            throw new FileNotFoundException("No safetensors file " + path + ".");
        }
        try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ)) {
            int length = headerLength(path, channel);
            String header = header(path, channel, length);
            Map<String, TensorEntry> entries = SafetensorsHeader.parse(path, header, 8L + length);
            SafetensorsHeader.checkLayout(path, entries, 8L + length, channel.size());
            return new SafetensorsFile(path, entries);
        }
    }

    /**
     * Returns the path of the file.
     *
     * @return the path given to {@link #open(Path)}
     */
    public Path path() {
        return path;
    }

    /**
     * Returns the tensors of the file.
     *
     * @return an unmodifiable map by name, in the order of the header
     */
    public Map<String, TensorEntry> entries() {
        return entries;
    }

    /**
     * Maps a part of a tensor, read-only.
     *
     * <p>The mapping lives as long as the buffer or a view of it is reachable. It begins at an
     * address that is a multiple of the element's size; where the file does not lay the tensor out
     * like that, the bytes are copied.
     *
     * @param entry the tensor
     * @param from the first byte within the tensor
     * @param length the number of bytes
     * @return a direct little endian buffer from position 0 to {@code length}
     * @throws IOException if the file cannot be mapped
     */
    static ByteBuffer map(TensorEntry entry, long from, int length) throws IOException {
        if (from < 0 || length < 0 || from > entry.bytes() - length) {
            throw new IllegalArgumentException(
                    "Bytes "
                            + from
                            + " to "
                            + (from + length)
                            + " are outside of "
                            + entry
                            + ", which has "
                            + entry.bytes()
                            + ".");
        }
        long start = entry.offset() + from;
        ByteBuffer mapped;
        try (FileChannel channel = FileChannel.open(entry.file(), StandardOpenOption.READ)) {
            if (channel.size() < start + length) {
                throw new IOException(
                        entry.file() + " was truncated after it was opened: " + entry.name());
            }
            mapped = channel.map(FileChannel.MapMode.READ_ONLY, start, length);
        }
        if (start % entry.dtype().getNumOfBytes() != 0) {
            mapped = ByteBuffer.allocateDirect(length).put(mapped).flip().asReadOnlyBuffer();
        }
        return mapped.order(ByteOrder.LITTLE_ENDIAN);
    }

    /** Compares two tensors of equal type and shape in parts. */
    static boolean sameBytes(TensorEntry a, TensorEntry b) throws IOException {
        for (long from = 0; from < a.bytes(); from += PART) {
            int length = (int) Math.min(PART, a.bytes() - from);
            if (!map(a, from, length).equals(map(b, from, length))) {
                return false;
            }
        }
        return a.bytes() == b.bytes();
    }

    private static String header(Path path, FileChannel channel, int length)
            throws IOException, MalformedModelException {
        ByteBuffer bytes = ByteBuffer.allocate(length);
        readFully(channel, bytes, 8);
        try {
            return StandardCharsets.UTF_8.newDecoder().decode(bytes).toString();
        } catch (CharacterCodingException e) {
            throw new MalformedModelException(path + ": the header is not valid UTF-8.", e);
        }
    }

    private static int headerLength(Path path, FileChannel channel)
            throws IOException, MalformedModelException {
        long size = channel.size();
        if (size < 8) {
            throw new MalformedModelException(
                    path
                            + " is truncated: a safetensors file has at least 8 bytes, this one "
                            + size
                            + ".");
        }
        ByteBuffer bytes = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN);
        readFully(channel, bytes, 0);
        long length = bytes.getLong();
        if (length < 2 || length > MAX_HEADER) {
            throw new MalformedModelException(
                    path
                            + " is not a safetensors file: its header length "
                            + Long.toUnsignedString(length)
                            + " is not between 2 and "
                            + MAX_HEADER
                            + ".");
        }
        if (length > size - 8) {
            throw new MalformedModelException(
                    path
                            + " is truncated: its header needs "
                            + (8 + length)
                            + " bytes, the file has "
                            + size
                            + ".");
        }
        return (int) length;
    }

    private static void readFully(FileChannel channel, ByteBuffer target, long position)
            throws IOException {
        while (target.hasRemaining()) {
            if (channel.read(target, position + target.position()) < 0) {
                throw new IOException("The file became shorter while it was read.");
            }
        }
        target.flip();
    }
}
