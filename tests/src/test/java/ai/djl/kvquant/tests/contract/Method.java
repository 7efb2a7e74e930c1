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
    /** kv_rotation=none, kv_value_rotation=false. */
    NOT_ROTATED("2 bits, not rotated", 2, 2),
    /** kv_rotation=post_rope. */
    POST_ROPE("4 bits after RoPE", 4, 4),
    /** kv_rotation=pre_rope_head. */
    PRE_ROPE_HEAD("3 bits, heads rotated alone", 3, 3),
    FP16_NORM8("fp16/int8", Keys.ELEMENTS, 16, Values.NORM, 8),
    ROTATEKV2_NORM2("rotatekv2/int2", Keys.ELEMENTS, 2, Values.NORM, 2),
    INT_NORM2("int/int2", Keys.AFTER_ROPE, 0, Values.NORM, 2),
    INT_NORM8("int/int8", Keys.AFTER_ROPE, 0, Values.NORM, 8),
    INT_ROTATEKV4("int/rotatekv4", Keys.AFTER_ROPE, 0, Values.ELEMENTS, 4),
    INT_FP16("int/fp16", Keys.AFTER_ROPE, 0, Values.ELEMENTS, 16),
    /** Not offered by kv_cache_dtype: norms of values in the natural basis. */
    INT_PLAIN_NORM4("int/natural 4", Keys.AFTER_ROPE, 0, Values.NATURAL_NORM, 4),
    /** Not offered by kv_cache_dtype: static codes of plain channels before RoPE. */
    BEFORE_ROPE_NORM4("before RoPE/int4", Keys.BEFORE_ROPE, 0, Values.NORM, 4),
    LATENT_NORM2("latent/int2", Keys.HEAD_BASIS, 0, Values.NORM, 2),
    LATENT_AUTO("latent/auto", Keys.HEAD_BASIS, 0, Values.ELEMENTS, 32),
    LAYER_LATENT_NORM3("latent of a layer/int3", Keys.LAYER_BASIS, 0, Values.NORM, 3),
    KVQUANT4("kvquant4", Keys.CODEBOOK, 4, Values.CODEBOOK, 4),
    KVQUANT3("kvquant3", Keys.CODEBOOK, 3, Values.CODEBOOK, 3),
    KVQUANT2("kvquant2", Keys.CODEBOOK, 2, Values.CODEBOOK, 2),
    KVQUANT3_NORM2("kvquant3/int2", Keys.CODEBOOK, 3, Values.NORM, 2),
    AUTO_KVQUANT2("auto/kvquant2", Keys.ELEMENTS, 32, Values.CODEBOOK, 2),
    INT_KVQUANT4("int/kvquant4", Keys.AFTER_ROPE, 0, Values.CODEBOOK, 4);

    /** How keys are stored. */
    private enum Keys {
        /** Elements, or codes of them with scales and zeros. */
        ELEMENTS,
        /** Static codes after RoPE. */
        AFTER_ROPE,
        /** Static codes before RoPE, channel by channel. */
        BEFORE_ROPE,
        /** Static codes in a dense basis of each head. */
        HEAD_BASIS,
        /** Static codes in a dense basis of all heads. */
        LAYER_BASIS,
        /** Levels of a codebook before RoPE, in ranges of channels. */
        CODEBOOK
    }

    /** How values are stored. */
    private enum Values {
        /** Elements, or codes of them with scales and zeros. */
        ELEMENTS,
        /** Levels of the rotated elements times a norm. */
        NORM,
        /** Levels of the elements times a norm. */
        NATURAL_NORM,
        /** Levels of a codebook, in ranges of tokens. */
        CODEBOOK
    }

    /** Methods whose cases vary along the same axes. */
    enum Family {
        PLAIN,
        AFFINE,
        STATIC,
        CODEBOOK
    }

    final String title;
    private final Keys keys;
    private final int keyBits;
    private final Values values;
    private final int valueBits;

    Method(String title, int keyBits, int valueBits) {
        this(title, Keys.ELEMENTS, keyBits, Values.ELEMENTS, valueBits);
    }

    Method(String title, Keys keys, int keyBits, Values values, int valueBits) {
        this.title = title;
        this.keys = keys;
        this.keyBits = keyBits;
        this.values = values;
        this.valueBits = valueBits;
    }

    Family family() {
        boolean affineValues = values == Values.ELEMENTS && valueBits < 16;
        if (keysAreStatic()) {
            return Family.STATIC;
        }
        if (hasCodebook()) {
            return Family.CODEBOOK;
        }
        return keysAreAffine() || affineValues ? Family.AFFINE : Family.PLAIN;
    }

    boolean keysAreStatic() {
        return keys != Keys.ELEMENTS && keys != Keys.CODEBOOK;
    }

    boolean hasCodebook() {
        return keys == Keys.CODEBOOK || values == Values.CODEBOOK;
    }

    private boolean keysAreAffine() {
        return keys == Keys.ELEMENTS && keyBits < 16;
    }

    boolean hasLayerBasis() {
        return keys == Keys.LAYER_BASIS;
    }

    boolean preRope() {
        return keys == Keys.CODEBOOK
                || (keysAreStatic()
                        ? keys != Keys.AFTER_ROPE
                        : keysAreAffine() && this != POST_ROPE && this != NOT_ROTATED);
    }

    Side keys(Case point, int groupSize) {
        if (keysAreStatic()) {
            return staticKeys(point);
        }
        if (keys == Keys.CODEBOOK) {
            return Side.codebook(Codebook.keys(keyBits, point));
        }
        return keysAreAffine()
                ? Side.affine(keyBits, rotatedTogether(point.kvHeads()), groupSize)
                : Side.plain(keyBits);
    }

    private int rotatedTogether(int heads) {
        return switch (this) {
            case NOT_ROTATED -> 0;
            case POST_ROPE, PRE_ROPE_HEAD -> 1;
            default -> heads % 4 == 0 ? 4 : heads % 3 == 0 ? 3 : heads % 2 == 0 ? 2 : 1;
        };
    }

    private Side staticKeys(Case point) {
        int channels = point.kvHeads() * point.headDim();
        boolean dense = keys == Keys.HEAD_BASIS || keys == Keys.LAYER_BASIS;
        Basis basis = dense ? Basis.of(point.kvHeads(), point.headDim(), hasLayerBasis()) : null;
        float[] waves = keys == Keys.AFTER_ROPE ? point.waveTable() : null;
        int[] widths = StaticCodes.WIDTHS[point.widths()];
        StaticCodes codes =
                StaticCodes.random(channels, point.headDim(), widths, basis, waves, point.seed());
        if (keys != Keys.AFTER_ROPE) {
            codes = codes.withPairedNoise(point.headDim());
        }
        return Side.statics(codes, dense || !point.order() ? null : point.headOrder());
    }

    Side values(Case point, int groupSize) {
        if (values == Values.CODEBOOK) {
            return Side.codebook(Codebook.values(valueBits, point));
        }
        if (values == Values.ELEMENTS) {
            int rotated = this == NOT_ROTATED ? 0 : 1;
            return valueBits < 16
                    ? Side.affine(valueBits, rotated, groupSize)
                    : Side.plain(valueBits);
        }
        return Side.norm(Levels.of(valueBits), values == Values.NORM);
    }

    @Override
    public String toString() {
        return title;
    }
}
