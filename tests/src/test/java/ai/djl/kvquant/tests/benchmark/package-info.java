/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/** JMH benchmarks of operators; programs, not tests. BENCHMARKS.md says how they are run. */
package ai.djl.kvquant.tests.benchmark;
