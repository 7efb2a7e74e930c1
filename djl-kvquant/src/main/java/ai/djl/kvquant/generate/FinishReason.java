/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

/** Why a sequence ended. */
public enum FinishReason {
    /** The model produced an end-of-sequence token. */
    EOS,
    /** A stop string appeared in the text. */
    STOP,
    /** The sequence reached {@code max_new_tokens}. */
    LENGTH,
    /** The caller cancelled. */
    CANCELLED,
    /** The KV cache had no room for another token; the result says how much fits. */
    CACHE_FULL,
    /** Prompt and generated tokens together reached the model's context length. */
    CONTEXT_FULL
}
