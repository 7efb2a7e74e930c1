/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/** The DJL engine {@code KvQuant}: loads HuggingFace directories on top of DJL's PyTorch engine. */
package ai.djl.kvquant.engine;
