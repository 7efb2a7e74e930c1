/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/** The families of ways to store keys or values. */
enum CacheMethod {
    /** The compute type, not quantized. */
    AUTO,
    /** Half precision. */
    FP16,
    /** RotateKV: rotated over heads, codes with a scale and zero per token and group. */
    ROTATEKV
}
