/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/** How RotateKV rotates keys; each value adds one of its ideas to the one before. */
enum KeyRotation {
    /** Not at all; stored after RoPE. */
    NONE(false),
    /** Each head by itself, after RoPE. */
    POST_ROPE(false),
    /** Each head by itself, before RoPE. */
    PRE_ROPE_HEAD(true),
    /** Up to four heads together, before RoPE. */
    PRE_ROPE(true);

    private final boolean preRope;

    KeyRotation(boolean preRope) {
        this.preRope = preRope;
    }

    /** Whether keys are stored before RoPE. */
    boolean isPreRope() {
        return preRope;
    }

    /** Kv heads that are rotated together; 0: none is rotated. */
    int heads(CacheGeometry geometry) {
        return switch (this) {
            case NONE -> 0;
            case POST_ROPE, PRE_ROPE_HEAD -> 1;
            case PRE_ROPE -> geometry.rotationHeads();
        };
    }
}
