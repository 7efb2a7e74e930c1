/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/** Reads and writes files in the safetensors format; knows nothing of models. */
package ai.djl.kvquant.safetensors;
