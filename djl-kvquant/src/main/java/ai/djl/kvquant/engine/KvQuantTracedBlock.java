/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.kvquant.generate.CacheUsage;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.types.Shape;
import ai.djl.nn.AbstractSymbolBlock;
import ai.djl.nn.ParameterList;
import ai.djl.training.ParameterStore;
import ai.djl.util.PairList;

/**
 * The block of a traced model, whose keys and values are kept in the cache between calls;
 * thread-safe. It follows DJL's contract for causal language models.
 */
public final class KvQuantTracedBlock extends AbstractSymbolBlock {

    private final SequenceHandles handles;

    KvQuantTracedBlock(TracedRunner model, HandleOptions options) {
        handles = new SequenceHandles(model, options.keepHandles());
    }

    /**
     * Returns how many sequences stand behind past keys and values at the moment.
     *
     * @return the number of sequences that DJL's searches hold
     */
    public int heldSequences() {
        return handles.size();
    }

    /**
     * Returns what the sequences behind past keys and values take in the cache.
     *
     * @return the usage; what sequences share counts in each
     */
    public CacheUsage heldUsage() {
        return handles.usage();
    }

    /** {@inheritDoc} */
    @Override
    protected NDList forwardInternal(
            ParameterStore parameterStore,
            NDList inputs,
            boolean training,
            PairList<String, Object> params) {
        return handles.forward(inputs);
    }

    /** {@inheritDoc} */
    @Override
    public ParameterList getDirectParameters() {
        return new ParameterList();
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
