/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */

/**
 * Calibration: measures a model on a text, chooses the parameters of its cache, and keeps them in
 * files.
 */
package ai.djl.kvquant.calibrate;
