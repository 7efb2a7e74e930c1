/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/**
 * The contract of the operators: every method on every variant against an oracle in double precision.
 *
 * <p>The oracle ({@link ai.djl.kvquant.tests.contract.Oracle}) and the readers of stored pages are written from the papers'
 * formulas and from the documented layout; they share no code with the library.
 */
package ai.djl.kvquant.tests.contract;
