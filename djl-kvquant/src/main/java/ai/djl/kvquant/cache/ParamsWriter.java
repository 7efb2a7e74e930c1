/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * Packed parameters of a layer: a header of fixed size, then tables that it refers to by offset.
 */
final class ParamsWriter {

    private static final int ALIGNMENT = 64;

    private final ByteBuffer header;
    private final ByteArrayOutputStream tables = new ByteArrayOutputStream();

    ParamsWriter(int headerBytes) {
        header = ByteBuffer.allocate(headerBytes).order(ByteOrder.LITTLE_ENDIAN);
    }

    ParamsWriter putInt(int value) {
        header.putInt(value);
        return this;
    }

    ParamsWriter putFloat(float value) {
        header.putFloat(value);
        return this;
    }

    ParamsWriter putByte(int value) {
        header.put((byte) value);
        return this;
    }

    /** Adds a table of FP32 and writes its offset into the header; 0 if there is none. */
    ParamsWriter putTable(float[] values) {
        if (values == null) {
            return putInt(0);
        }
        ByteBuffer bytes = buffer(4 * values.length);
        for (float value : values) {
            bytes.putFloat(value);
        }
        return putTable(bytes);
    }

    /** Adds a table of INT16 and writes its offset into the header; 0 if there is none. */
    ParamsWriter putTable(int[] values) {
        if (values == null) {
            return putInt(0);
        }
        ByteBuffer bytes = buffer(2 * values.length);
        for (int value : values) {
            bytes.putShort((short) value);
        }
        return putTable(bytes);
    }

    private static ByteBuffer buffer(int bytes) {
        return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }

    private ParamsWriter putTable(ByteBuffer bytes) {
        while ((header.capacity() + tables.size()) % ALIGNMENT != 0) {
            tables.write(0);
        }
        putInt(header.capacity() + tables.size());
        tables.writeBytes(bytes.array());
        return this;
    }

    /** The bytes; position of the total size is given, since only now it is known. */
    ByteBuffer finish(int sizePosition) {
        int bytes = header.capacity() + tables.size();
        header.putInt(sizePosition, bytes);
        ByteBuffer out = ByteBuffer.allocateDirect(bytes).order(ByteOrder.LITTLE_ENDIAN);
        return out.put(header.array()).put(tables.toByteArray()).flip();
    }
}
