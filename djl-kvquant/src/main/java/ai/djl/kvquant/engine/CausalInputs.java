/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * The inputs of DJL's contract for causal language models, checked: token ids and position ids
 * INT64 {@code [batch, newTokens]}, attention mask INT64 {@code [batch, pastColumns + newTokens]},
 * then past keys and values, of which each entry stands for a sequence: a handle, 0 if none.
 */
final class CausalInputs {

    private final NDList list;
    private final int batch;
    private final int newTokens;
    private final int pastColumns;
    private final long[] ids;
    private final long[] mask;
    private final int[] handles;

    /**
     * Reads and checks the inputs.
     *
     * @throws IllegalArgumentException if they do not follow the contract
     */
    CausalInputs(NDList list) {
        this.list = list;
        if (list.size() < 3 || list.size() % 2 == 0) {
            throw new IllegalArgumentException(
                    "A causal language model takes token ids, position ids, an attention mask and"
                            + " pairs of past keys and values, but got "
                            + list.size()
                            + " arrays.");
        }
        Shape shape = list.get(0).getShape();
        if (shape.dimension() != 2 || shape.size() == 0) {
            throw new IllegalArgumentException(
                    "Token ids must be [batch, tokens] with at least one token, not "
                            + shape
                            + ".");
        }
        batch = Math.toIntExact(shape.get(0));
        newTokens = Math.toIntExact(shape.get(1));
        pastColumns = readPastColumns();
        ids = integers(0, "Token ids", newTokens);
        mask = integers(2, "The attention mask", pastColumns + newTokens);
        handles = new int[batch];
        if (pastColumns > 0) {
            readHandles();
        }
    }

    private int readPastColumns() {
        if (list.size() == 3) {
            return 0;
        }
        Shape past = list.get(3).getShape();
        for (NDArray array : list.subNDList(3)) {
            if (array.getDataType() != DataType.FLOAT32
                    || array.getShape().dimension() != 4
                    || array.getShape().get(0) != batch
                    || !array.getShape().equals(past)) {
                throw new IllegalArgumentException(
                        "Past keys and values must be as the engine KvQuant returned them, FLOAT32"
                                + " [batch, 1, tokens, 1], all alike, or zeros for none; got "
                                + array.getDataType()
                                + " "
                                + array.getShape()
                                + " for a batch of "
                                + batch
                                + ".");
            }
        }
        return Math.toIntExact(past.get(2));
    }

    private long[] integers(int index, String what, int columns) {
        NDArray array = list.get(index);
        Shape expected = new Shape(batch, columns);
        if (array.getDataType() != DataType.INT64 || !array.getShape().equals(expected)) {
            throw new IllegalArgumentException(
                    what
                            + " must be INT64 "
                            + expected
                            + ", not "
                            + array.getDataType()
                            + " "
                            + array.getShape()
                            + ".");
        }
        return array.toLongArray();
    }

    /** Whoever pads or cuts past keys and values does so on the left: the last column counts. */
    private void readHandles() {
        try (NDArray last = list.get(3).get(":, 0, -1, 0")) {
            float[] values = last.toFloatArray();
            for (int row = 0; row < batch; ++row) {
                handles[row] = (int) values[row];
                if (handles[row] < 0 || handles[row] != values[row]) {
                    throw new IllegalArgumentException(
                            "Past keys and values of row "
                                    + row
                                    + " hold "
                                    + values[row]
                                    + ", which the engine KvQuant did not return. Pass on what it"
                                    + " returned, unchanged.");
                }
            }
        }
    }

    int batch() {
        return batch;
    }

    /** New columns, those of padding included. */
    int newTokens() {
        return newTokens;
    }

    /** Columns of past keys and values, those of padding included. */
    int pastColumns() {
        return pastColumns;
    }

    /** Pairs of past keys and values, 0 if none were given. */
    int pairs() {
        return (list.size() - 3) / 2;
    }

    /** The sequence that a row goes on with, 0 for a new one. */
    int handle(int row) {
        return handles[row];
    }

    /** All arrays. */
    NDList list() {
        return list;
    }

    /** Whether a new column of a row is a token, not padding. */
    boolean isToken(int row, int column) {
        return mask[row * (pastColumns + newTokens) + pastColumns + column] != 0;
    }

    /** Past columns of a row that are tokens. */
    int pastTokens(int row) {
        int begin = row * (pastColumns + newTokens);
        return (int) Arrays.stream(mask, begin, begin + pastColumns).filter(m -> m != 0).count();
    }

    /** An id beyond the ints is as unknown to the model as the largest one. */
    static int tokenId(long id) {
        return (int) Math.max(-1, Math.min(id, Integer.MAX_VALUE));
    }

    /** The new tokens of each row, without padding. */
    List<int[]> tokens() {
        List<int[]> tokens = new ArrayList<>();
        for (int row = 0; row < batch; ++row) {
            int[] ofRow = new int[newTokens];
            int count = 0;
            for (int column = 0; column < newTokens; ++column) {
                if (isToken(row, column)) {
                    ofRow[count++] = tokenId(ids[row * newTokens + column]);
                }
            }
            if (count == 0) {
                throw new IllegalArgumentException(
                        "Row "
                                + row
                                + " has no tokens: the attention mask hides all of its "
                                + newTokens
                                + " columns. Is the prompt empty, or all padding?");
            }
            tokens.add(Arrays.copyOf(ofRow, count));
        }
        return tokens;
    }

    /**
     * Refuses positions other than those of a cache: the tokens of the row before, or the column,
     * which differs by padding.
     */
    void requirePositions() {
        long[] positions = integers(1, "Position ids", newTokens);
        for (int row = 0; row < batch; ++row) {
            int next = pastTokens(row);
            int firstColumn = handles[row] == 0 ? 0 : pastColumns;
            for (int column = 0; column < newTokens; ++column) {
                if (!isToken(row, column)) {
                    continue;
                }
                long position = positions[row * newTokens + column];
                if (position != next && position != firstColumn + column) {
                    throw new IllegalArgumentException(
                            "Position id "
                                    + position
                                    + " of row "
                                    + row
                                    + " is that of no next token: "
                                    + next
                                    + " tokens come before. The engine KvQuant numbers tokens in"
                                    + " order, without gaps.");
                }
                ++next;
            }
        }
    }
}
