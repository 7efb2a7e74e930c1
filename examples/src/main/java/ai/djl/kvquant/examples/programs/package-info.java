/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/** Example programs: each shows one thing that the public API can do, in one file. */
package ai.djl.kvquant.examples.programs;
