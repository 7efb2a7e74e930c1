/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/** What a quantized KV cache costs in accuracy: perplexity of texts, retrieval from long ones, and the error of each layer. */
package ai.djl.kvquant.evaluate;
