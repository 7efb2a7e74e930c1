/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.ndarray.NDArray;

/**
 * What a model made of new tokens, those of all sequences one after the other; the caller closes
 * both arrays.
 *
 * @param logits FLOAT32 {@code [tokens, vocabulary]}, or {@code [sequences, vocabulary]} of the
 *     last tokens alone
 * @param hidden the last layer's output behind the final norm, FLOAT32 {@code [tokens, hidden]}
 */
public record TokenStates(NDArray logits, NDArray hidden) {}
