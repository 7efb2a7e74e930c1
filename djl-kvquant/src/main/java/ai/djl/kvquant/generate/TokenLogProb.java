/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

/**
 * A token and its log-probability.
 *
 * @param token the token id
 * @param logProb the natural logarithm of its probability: log-softmax of the model's raw logits,
 *     before repetition penalty, temperature and filtering
 */
public record TokenLogProb(int token, float logProb) {}
