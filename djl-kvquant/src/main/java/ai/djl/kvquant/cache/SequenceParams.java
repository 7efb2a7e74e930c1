/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.NDScope;
import java.util.ArrayList;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;

/**
 * Packed parameters of the layers for one sequence and its forks, instead of the cache's; counted
 * under the cache's lock.
 */
final class SequenceParams {

    /** One tensor per layer: the cache's until a layer gets its own. */
    final NDList layers;

    private final NDManager manager;
    private final Operators operators;
    private int users = 1;
    private long bytes;

    SequenceParams(NDManager parent, Operators operators, NDList shared) {
        this.operators = operators;
        manager = parent.newSubManager();
        layers = new NDList(shared);
    }

    void set(int layer, NDArray params) {
        params.attach(manager);
        // Callers may be in a scope that closes what is created there.
        NDScope.unregister(params);
        operators.hold(manager, params);
        layers.set(layer, params);
        bytes += params.size();
    }

    /** Bytes of the sequence's own tensors. */
    long bytes() {
        return bytes;
    }

    void retain() {
        ++users;
    }

    void release() {
        if (--users == 0) {
            manager.close();
        }
    }

    /** Rows whose sequences have the same parameters, in the order of the first of each. */
    static List<List<Integer>> groups(List<CacheSequence> sequences) {
        Map<Object, List<Integer>> rows = new IdentityHashMap<>();
        List<List<Integer>> groups = new ArrayList<>();
        for (int row = 0; row < sequences.size(); ++row) {
            SequenceParams own = sequences.get(row).own;
            Object key = own == null ? SequenceParams.class : own;
            if (!rows.containsKey(key)) {
                rows.put(key, new ArrayList<>());
                groups.add(rows.get(key));
            }
            rows.get(key).add(row);
        }
        return groups;
    }
}
