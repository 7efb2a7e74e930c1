/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.kvquant.generate.CacheUsage;
import ai.djl.kvquant.generate.ModelClosedException;
import ai.djl.ndarray.NDList;
import ai.djl.nn.AbstractSymbolBlock;
import ai.djl.nn.ParameterList;
import ai.djl.training.ParameterStore;
import ai.djl.util.PairList;
import java.util.concurrent.locks.ReadWriteLock;
import java.util.concurrent.locks.ReentrantReadWriteLock;

/**
 * A block whose keys and values are in a cache, and which is not closed under a call that runs;
 * thread-safe.
 */
abstract class CachedBlock extends AbstractSymbolBlock {

    private final SequenceHandles handles;
    private final ReadWriteLock calls = new ReentrantReadWriteLock();
    private boolean closed;

    CachedBlock(SequenceHandles handles) {
        this.handles = handles;
    }

    /** Computes outputs that live as long as the inputs. */
    abstract NDList compute(NDList inputs);

    /** Computes by DJL's contract for causal language models. */
    final NDList computeByContract(NDList inputs) {
        return handles.forward(inputs);
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

    /** Waits for the calls that run, and refuses later ones: weights and cache can be freed. */
    final void close() {
        calls.writeLock().lock();
        closed = true;
        calls.writeLock().unlock();
    }

    /** {@inheritDoc} */
    @Override
    protected NDList forwardInternal(
            ParameterStore parameterStore,
            NDList inputs,
            boolean training,
            PairList<String, Object> params) {
        calls.readLock().lock();
        try {
            if (closed) {
                throw new ModelClosedException("The model is closed; load it again.");
            }
            return compute(inputs);
        } finally {
            calls.readLock().unlock();
        }
    }

    /** {@inheritDoc} */
    @Override
    public ParameterList getDirectParameters() {
        // The weights are not for training, and DJL could not name their types.
        return new ParameterList();
    }
}
