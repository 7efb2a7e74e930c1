/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDList;

/** Pages to be copied before an append, collected so that one call does them all. */
final class RowCopies {

    private final IntArray sources = new IntArray();
    private final IntArray targets = new IntArray();

    void add(int source, int target) {
        sources.add(source);
        targets.add(target);
    }

    void run(Operators operators, NDList pools) {
        if (sources.size() > 0) {
            operators.copyRows(pools, sources.toArray(), targets.toArray());
        }
    }
}
