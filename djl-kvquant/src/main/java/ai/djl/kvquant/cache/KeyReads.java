/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * What a decoding step reads of keys, in bits per key element of all tokens that the sequence has,
 * read or not: 16 bits over the total is the factor against reading all keys in fp16.
 *
 * @param codes stored keys
 * @param exact sinks and recent window
 * @param landmarks what stored keys are chosen by, with kv_sparse_tokens
 * @param basis a basis of the sequence's own, with kv_basis=prompt
 */
public record KeyReads(double codes, double exact, double landmarks, double basis) {

    /**
     * Returns the sum.
     *
     * @return bits per key element
     */
    public double total() {
        return codes + exact + landmarks + basis;
    }
}
