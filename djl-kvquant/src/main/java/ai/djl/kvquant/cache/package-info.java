/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/** The KV cache: its data types, pages and sequences. */
package ai.djl.kvquant.cache;
