/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.ndarray.NDList;
import ai.djl.ndarray.types.Shape;
import ai.djl.util.PairList;

/**
 * The block of a traced model, whose keys and values are kept in the cache between calls;
 * thread-safe. It follows DJL's contract for causal language models.
 */
public final class KvQuantTracedBlock extends CachedBlock {

    KvQuantTracedBlock(TracedRunner model, HandleOptions options) {
        super(new SequenceHandles(model, options.keepHandles()));
    }

    @Override
    NDList compute(NDList inputs) {
        return computeByContract(inputs);
    }

    /** {@inheritDoc} */
    @Override
    public Shape[] getOutputShapes(Shape[] inputShapes) {
        throw new UnsupportedOperationException(
                "The shapes of a traced model's outputs are known once it has run.");
    }

    /** {@inheritDoc} */
    @Override
    public PairList<String, Shape> describeInput() {
        PairList<String, Shape> inputs = new PairList<>();
        for (String name : new String[] {"input_ids", "position_ids", "attention_mask"}) {
            inputs.add(name, new Shape(-1, -1));
        }
        return inputs;
    }
}
