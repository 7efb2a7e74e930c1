/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;

/** The arrays that follow the header of packed parameters, which refers to them by offset. */
final class Tables {

    private final List<ByteBuffer> tables = new ArrayList<>();
    private int end;

    /** Arrays from an offset on. */
    Tables(int begin) {
        end = begin;
    }

    /** Where FP32 numbers will lie; 0 for null. */
    int add(float[] values) {
        if (values == null) {
            return 0;
        }
        ByteBuffer bytes = buffer(4 * values.length);
        for (float value : values) {
            bytes.putFloat(value);
        }
        return add(bytes);
    }

    /** Where INT16 numbers will lie; 0 for null. */
    int add(int[] values) {
        if (values == null) {
            return 0;
        }
        // Whole words, so that what follows is aligned.
        ByteBuffer bytes = buffer((2 * values.length + 3) / 4 * 4);
        for (int value : values) {
            bytes.putShort((short) value);
        }
        return add(bytes.position(bytes.capacity()));
    }

    private static ByteBuffer buffer(int bytes) {
        return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }

    private int add(ByteBuffer bytes) {
        int offset = end;
        tables.add(bytes.flip());
        end += bytes.limit();
        return offset;
    }

    /** Bytes of the header and all arrays. */
    int end() {
        return end;
    }

    void write(ByteBuffer out) {
        tables.forEach(table -> out.put(table.duplicate()));
    }
}
