/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/** Tests that cross modules: the default model, golden values of other implementations. */
package ai.djl.kvquant.tests;
