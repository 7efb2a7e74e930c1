/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.safetensors;

import ai.djl.ndarray.types.DataType;
import java.nio.file.Path;
import java.util.Arrays;

/**
 * Where one tensor lies in a safetensors file.
 *
 * @param name the name of the tensor
 * @param dtype the type of its elements
 * @param shape its dimensions, outermost first; not to be modified
 * @param file the file that holds it
 * @param offset the position of its first byte in the file
 * @param bytes its size in bytes; elements are little endian and in row-major order
 */
public record TensorEntry(
        String name, DataType dtype, long[] shape, Path file, long offset, long bytes) {

    /**
     * Returns whether the tensor has these dimensions.
     *
     * @param dimensions the dimensions, outermost first
     * @return whether they are equal
     */
    public boolean hasShape(long... dimensions) {
        return Arrays.equals(shape, dimensions);
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof TensorEntry entry
                && name.equals(entry.name)
                && dtype == entry.dtype
                && Arrays.equals(shape, entry.shape)
                && file.equals(entry.file)
                && offset == entry.offset
                && bytes == entry.bytes;
    }

    @Override
    public int hashCode() {
        return 31 * name.hashCode() + Long.hashCode(offset);
    }

    @Override
    public String toString() {
        return name + " " + dtype + Arrays.toString(shape) + " in " + file.getFileName();
    }
}
