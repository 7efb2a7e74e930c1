/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.safetensors;

import ai.djl.MalformedModelException;
import ai.djl.ndarray.types.DataType;
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
import java.util.Arrays;
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

    private static final byte[] LFS_START =
            "version https://git-lfs".getBytes(StandardCharsets.US_ASCII);

    /** The most that is mapped at once to compare tensors. */
    private static final int PART = 1 << 28;

    private final Path path;
    private final long dataStart;
    private final Map<String, TensorEntry> entries;
    private final Map<String, String> metadata;

    private SafetensorsFile(Path path, long dataStart, SafetensorsHeader header) {
        this.path = path;
        this.dataStart = dataStart;
        entries = Collections.unmodifiableMap(header.entries());
        metadata = Collections.unmodifiableMap(header.metadata());
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
            long dataStart = 8L + length;
            String text = header(path, channel, length);
            SafetensorsHeader header = SafetensorsHeader.parse(path, text, dataStart);
            header.checkLayout(path, dataStart, channel.size());
            return new SafetensorsFile(path, dataStart, header);
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
     * Returns the texts that the file carries beside its tensors.
     *
     * @return an unmodifiable map by key
     */
    public Map<String, String> metadata() {
        return metadata;
    }

    /**
     * Returns where the header ends and the data begin.
     *
     * @return the position of the first byte after the header
     */
    public long dataStart() {
        return dataStart;
    }

    /**
     * Reads a tensor of type F32.
     *
     * @param entry the tensor, of less than 2 GiB
     * @return its elements in row-major order
     * @throws IllegalArgumentException if it has another type or is larger
     * @throws IOException if the file cannot be read
     */
    public static float[] floats(TensorEntry entry) throws IOException {
        if (entry.dtype() != DataType.FLOAT32 || entry.bytes() > Integer.MAX_VALUE) {
            throw new IllegalArgumentException(
                    "Tensor " + entry + " is not of type F32 with less than 2 GiB.");
        }
        float[] values = new float[(int) (entry.bytes() / Float.BYTES)];
        map(entry, 0, (int) entry.bytes()).asFloatBuffer().get(values);
        return values;
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
     * @throws IllegalArgumentException if the part is outside of the tensor
     * @throws IOException if the file cannot be mapped
     */
    public static ByteBuffer map(TensorEntry entry, long from, int length) throws IOException {
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

    /**
     * Compares the bytes of two tensors.
     *
     * @param a a tensor
     * @param b a tensor of the same type and shape
     * @return whether they are equal
     * @throws IOException if a file cannot be mapped
     */
    public static boolean sameBytes(TensorEntry a, TensorEntry b) throws IOException {
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
                            + ". Download it again.");
        }
        if (isLfsPointer(channel)) {
            throw new MalformedModelException(
                    path
                            + " is a Git LFS pointer and not the file that it stands for. Run 'git"
                            + " lfs pull' in its repository, or download it again.");
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
                            + ". Download it again.");
        }
        if (length > size - 8) {
            throw new MalformedModelException(
                    path
                            + " is truncated: its header needs "
                            + (8 + length)
                            + " bytes, the file has "
                            + size
                            + ". Download it again.");
        }
        return (int) length;
    }

    private static boolean isLfsPointer(FileChannel channel) throws IOException {
        byte[] start = new byte[LFS_START.length];
        channel.read(ByteBuffer.wrap(start), 0);
        return Arrays.equals(start, LFS_START);
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
