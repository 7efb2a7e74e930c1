/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.List;

/**
 * How KVQuant's codes are made.
 *
 * @param outliers kv_outliers, the share of elements that are kept apart, exactly; 0: none
 * @param normalized kv_qnorm, whether codes of 2 bits are read as levels that restore mean and
 *     deviation
 */
record CodebookOptions(double outliers, boolean normalized) {

    static final String OUTLIERS = "kv_outliers";
    static final String NORMALIZED = "kv_qnorm";

    private static final double DEFAULT_OUTLIERS = 0.01;
    private static final double MAX_OUTLIERS = 0.25;

    /**
     * Reads the options.
     *
     * @throws IllegalArgumentException if one has an impossible value or no effect
     */
    static CodebookOptions of(OptionValues values, CacheDtype dtype) {
        if (!dtype.uses(CacheMethod.KVQUANT)) {
            for (String name : List.of(OUTLIERS, NORMALIZED)) {
                values.refuse(
                        name,
                        "keys or values are stored by kvquant",
                        dtype,
                        "a kv_cache_dtype such as kvquant2");
            }
        }
        double outliers =
                values.number(
                        OUTLIERS,
                        DEFAULT_OUTLIERS,
                        share -> share >= 0 && share <= MAX_OUTLIERS,
                        "the share of elements that are kept exactly, 0 to " + MAX_OUTLIERS);
        boolean normalized = values.bool(NORMALIZED, false);
        if (normalized && !canNormalize(dtype)) {
            throw new IllegalArgumentException(
                    "kv_qnorm is true, which kv_cache_dtype "
                            + dtype.name()
                            + " does not offer; allowed with kvquant2 only.");
        }
        return new CodebookOptions(outliers, normalized);
    }

    private static boolean canNormalize(CacheDtype dtype) {
        return dtype.uses(CacheMethod.KVQUANT)
                && (dtype.keyMethod() != CacheMethod.KVQUANT || dtype.keyBits() == 2)
                && (dtype.valueMethod() != CacheMethod.KVQUANT || dtype.valueBits() == 2);
    }

    /** What these options add to the name of a calibration. */
    String suffix() {
        if (outliers == DEFAULT_OUTLIERS) {
            return "";
        }
        return outliers == 0 ? "-dense" : "-outliers" + outliers;
    }
}
