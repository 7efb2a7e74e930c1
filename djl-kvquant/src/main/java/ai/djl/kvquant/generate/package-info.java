/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/**
 * The generation loop: sampling, stopping, streaming and incremental detokenization over any causal
 * language model that decodes step by step.
 *
 * <p>This package knows tokens and logits only; how a model stores its KV cache is hidden behind
 * {@link ai.djl.kvquant.generate.LanguageModel} and {@link ai.djl.kvquant.generate.DecodingBatch}.
 */
package ai.djl.kvquant.generate;
