/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

/** The contract matrix: one row per way to store a cache. A new method adds a row. */
enum Method {
    AUTO("auto", 32, 32),
    FP16("fp16", 16, 16),
    AUTO_FP16("auto/fp16", 32, 16),
    ROTATEKV4("rotatekv4", 4, 4),
    ROTATEKV3("rotatekv3", 3, 3),
    ROTATEKV2("rotatekv2", 2, 2),
    ROTATEKV4_2("rotatekv4/rotatekv2", 4, 2),
    AUTO_ROTATEKV4("auto/rotatekv4", 32, 4),
    ROTATEKV2_FP16("rotatekv2/fp16", 2, 16),
    FP16_ROTATEKV3("fp16/rotatekv3", 16, 3),
    /** Not offered by kv_cache_dtype: the format's widest codes. */
    EIGHT_BITS("8 bits", 8, 8),
    /** Not offered by kv_cache_dtype: rotated codes of keys that RoPE has turned. */
    POST_ROPE("4 bits after RoPE", 4, 4);

    final String title;
    private final int keyBits;
    private final int valueBits;

    Method(String title, int keyBits, int valueBits) {
        this.title = title;
        this.keyBits = keyBits;
        this.valueBits = valueBits;
    }

    /** Whether groups, zeros and, for keys, orders mean anything. */
    boolean isAffine() {
        return keyBits < 16 || valueBits < 16;
    }

    boolean keysAreAffine() {
        return keyBits < 16;
    }

    boolean preRope() {
        return keysAreAffine() && this != POST_ROPE;
    }

    Side keys(int kvHeads, int groupSize) {
        int rotated = kvHeads % 4 == 0 ? 4 : kvHeads % 3 == 0 ? 3 : kvHeads % 2 == 0 ? 2 : 1;
        return keysAreAffine() ? Side.affine(keyBits, rotated, groupSize) : Side.plain(keyBits);
    }

    Side values(int groupSize) {
        return valueBits < 16 ? Side.affine(valueBits, 1, groupSize) : Side.plain(valueBits);
    }

    @Override
    public String toString() {
        return title;
    }
}
