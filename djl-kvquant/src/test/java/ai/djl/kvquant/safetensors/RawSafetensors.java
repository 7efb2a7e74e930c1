/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.safetensors;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/** Writes safetensors files by the definition of the format, broken ones, too. */
public final class RawSafetensors {

    private RawSafetensors() {}

    /** Writes the length of the header, the header and the data. */
    public static void write(Path file, String header, byte[] data) throws IOException {
        byte[] text = header.getBytes(StandardCharsets.UTF_8);
        ByteBuffer bytes = ByteBuffer.allocate(8 + text.length + data.length);
        bytes.order(ByteOrder.LITTLE_ENDIAN).putLong(text.length).put(text).put(data);
        Files.write(file, bytes.array());
    }
}
