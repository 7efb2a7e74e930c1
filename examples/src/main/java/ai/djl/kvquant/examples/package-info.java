/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/** The kvq command line: text generation, chat, perplexity and speed with a quantized KV cache. */
package ai.djl.kvquant.examples;
