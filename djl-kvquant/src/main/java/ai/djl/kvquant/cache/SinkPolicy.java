/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * Which tokens of a sequence are sinks, kept exactly for ever; ordinals are those of the operators'
 * layout.h.
 */
enum SinkPolicy {
    /** None. */
    NONE,
    /** The first ones. */
    FIRST,
    /** The owners of the largest entries of each layer's input over the prompt. */
    MASSIVE
}
