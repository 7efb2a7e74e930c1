/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Arrays;

/** A growing array of ints. */
final class IntArray {

    private int[] data = new int[16];
    private int size;

    int size() {
        return size;
    }

    int get(int index) {
        return data[index];
    }

    void set(int index, int value) {
        data[index] = value;
    }

    void add(int value) {
        if (size == data.length) {
            data = Arrays.copyOf(data, 2 * size);
        }
        data[size++] = value;
    }

    void addAll(int[] values) {
        for (int value : values) {
            add(value);
        }
    }

    void truncate(int newSize) {
        size = newSize;
    }

    int[] toArray() {
        return Arrays.copyOf(data, size);
    }

    IntArray copy() {
        IntArray other = new IntArray();
        other.data = data.clone();
        other.size = size;
        return other;
    }

    /** Length of the common beginning with values. */
    int commonPrefix(int[] values) {
        int limit = Math.min(size, values.length);
        int n = 0;
        while (n < limit && data[n] == values[n]) {
            ++n;
        }
        return n;
    }
}
