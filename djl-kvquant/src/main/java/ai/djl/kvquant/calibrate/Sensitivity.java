/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

/** What a calibration takes as a sign of how much errors of a key or value matter. */
public enum Sensitivity {
    /** The queries that meet a key: a forward pass only. */
    QUERIES,
    /** The gradients of the loss, where the method of a cache makes use of them. */
    GRADIENTS
}
