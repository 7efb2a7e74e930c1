/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.torch;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.zip.CRC32;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;

/**
 * Writes TorchScript modules without weights: an uncompressed zip with the module's code and a
 * pickle of its empty state.
 *
 * <p>The code defines {@code class M(Module)}, whose attributes are {@code training}, {@code
 * _is_full_backward_hook} and {@code w : List[Tensor]}, empty until a method sets it.
 */
public final class TorchArchive {

    private static final byte[] EMPTY_TUPLE = {(byte) 0x80, 2, ')', '.'};

    private TorchArchive() {}

    /**
     * Returns the bytes of an archive.
     *
     * @param methods the methods of the class, each indented by two spaces and ending with a line
     *     break
     * @return the archive
     */
    public static byte[] write(String methods) {
        String code =
                "class M(Module):\n"
                        + "  __parameters__ = []\n"
                        + "  __buffers__ = []\n"
                        + "  training : bool\n"
                        + "  _is_full_backward_hook : Optional[bool]\n"
                        + "  w : List[Tensor]\n"
                        + methods;
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        try (ZipOutputStream zip = new ZipOutputStream(bytes)) {
            zip.setMethod(ZipOutputStream.STORED);
            put(zip, "m/data.pkl", state());
            put(zip, "m/code/__torch__.py", code.getBytes(StandardCharsets.UTF_8));
            put(zip, "m/constants.pkl", EMPTY_TUPLE);
            put(zip, "m/version", "3\n".getBytes(StandardCharsets.US_ASCII));
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
        return bytes.toByteArray();
    }

    /** The pickle, protocol 2, of an object of class M and its attributes. */
    private static byte[] state() throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.write(new byte[] {(byte) 0x80, 2});
        out.write(ascii("c__torch__\nM\nq\0)\u0081q\1}q\2("));
        out.write(string("training"));
        out.write(ascii("\u0089"));
        out.write(string("_is_full_backward_hook"));
        out.write(ascii("N"));
        out.write(string("w"));
        out.write(ascii("ctorch.jit._pickle\nbuild_tensorlist\n(](etR"));
        out.write(ascii("ub."));
        return out.toByteArray();
    }

    private static byte[] ascii(String text) {
        return text.getBytes(StandardCharsets.ISO_8859_1);
    }

    private static byte[] string(String text) {
        byte[] bytes = ascii(text);
        return ByteBuffer.allocate(5 + bytes.length)
                .order(ByteOrder.LITTLE_ENDIAN)
                .put((byte) 'X')
                .putInt(bytes.length)
                .put(bytes)
                .array();
    }

    private static void put(ZipOutputStream zip, String name, byte[] data) throws IOException {
        CRC32 crc = new CRC32();
        crc.update(data);
        ZipEntry entry = new ZipEntry(name);
        entry.setSize(data.length);
        entry.setCrc(crc.getValue());
        // A fixed date: equal modules give equal archives.
        entry.setTime(0);
        zip.putNextEntry(entry);
        zip.write(data);
        zip.closeEntry();
    }
}
