/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.llama.TokenStates;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.List;

/** Runs a LLaMA checkpoint: its attention reads the cache as it is stored. */
final class LlamaRunner implements CausalRunner {

    private final LlamaLanguageModel model;
    private final boolean promptLogits;

    /** With logits of all of a prompt's tokens, or of the last one. */
    LlamaRunner(LlamaLanguageModel model, boolean promptLogits) {
        this.model = model;
        this.promptLogits = promptLogits;
    }

    /** {@inheritDoc} */
    @Override
    public KvCache cache() {
        return model.cache();
    }

    /** {@inheritDoc} */
    @Override
    public int numLayers() {
        return model.cache().geometry().numLayers();
    }

    /** {@inheritDoc} */
    @Override
    public void check(CausalInputs inputs) {
        inputs.requirePositions();
    }

    /** {@inheritDoc} */
    @Override
    public NDList run(NDManager owner, CausalInputs inputs, List<CacheSequence> rows) {
        List<int[]> tokens = inputs.tokens();
        try (NDManager scope = owner.newSubManager()) {
            boolean all = promptLogits || rows.stream().anyMatch(row -> row.length() > 0);
            TokenStates states = model.append(scope, rows, tokens, all);
            NDArray logits =
                    all ? columns(states.logits(), inputs, tokens) : states.logits().expandDims(1);
            NDArray hidden = columns(states.hidden(), inputs, tokens);
            logits.attach(owner);
            hidden.attach(owner);
            return new NDList(logits, hidden);
        }
    }

    /**
     * Lays tokens out in the columns of the inputs. Padding before a row's first token is zeros,
     * padding behind a token repeats it: who pads on the right reads the last column.
     */
    private static NDArray columns(NDArray states, CausalInputs inputs, List<int[]> tokens) {
        int batch = inputs.batch();
        int columns = inputs.newTokens();
        Shape shape = new Shape(batch, columns, states.getShape().get(1));
        long count = states.getShape().get(0);
        if (count == (long) batch * columns) {
            return states.reshape(shape);
        }
        long[] from = new long[batch * columns];
        int first = 0;
        for (int row = 0; row < batch; ++row) {
            int next = first;
            for (int column = 0; column < columns; ++column) {
                next += inputs.isToken(row, column) ? 1 : 0;
                from[row * columns + column] = next == first ? count : next - 1;
            }
            first += tokens.get(row).length;
        }
        NDManager manager = states.getManager();
        NDArray zeros = manager.zeros(new Shape(1, states.getShape().get(1)));
        NDArray padded = NDArrays.concat(new NDList(states, zeros));
        return padded.get(manager.create(from)).reshape(shape);
    }
}
