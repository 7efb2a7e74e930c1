/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.List;

/** What computes new tokens of sequences, whichever way the model came to be; thread-safe. */
interface CausalRunner {

    /** The cache that all sequences live in. */
    KvCache cache();

    /** The model's layers. */
    int numLayers();

    /** Refuses inputs that do not fit the model, before a sequence is touched. */
    void check(CausalInputs inputs);

    /**
     * Appends the new tokens to the sequences, or nothing if it fails.
     *
     * @param owner the manager that the result is attached to
     * @param inputs the inputs
     * @param rows a sequence for each row, none twice
     * @return logits {@code [batch, newTokens, vocabulary]}, where there is no past possibly those
     *     of the last token, {@code [batch, 1, vocabulary]}, and hidden states {@code [batch,
     *     newTokens, hidden]} if the model tells them
     */
    NDList run(NDManager owner, CausalInputs inputs, List<CacheSequence> rows);
}
