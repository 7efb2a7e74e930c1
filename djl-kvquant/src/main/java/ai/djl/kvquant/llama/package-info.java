/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/**
 * What a HuggingFace LLaMA directory holds: its configuration, its rotary position embedding and
 * its weights in safetensors files.
 */
package ai.djl.kvquant.llama;
