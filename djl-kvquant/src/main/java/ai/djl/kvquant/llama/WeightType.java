/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import java.util.Arrays;
import java.util.Locale;
import java.util.stream.Collectors;

/**
 * The option {@code dtype}: the type in which weights are kept. On a CPU sums are fp32 whatever the
 * weights are.
 */
public enum WeightType {
    /** The checkpoint's type. */
    AUTO("auto"),
    /** Single precision. */
    FP32("F32"),
    /** Brain float. */
    BF16("BF16"),
    /** Half precision. */
    FP16("F16");

    private final String tensorType;

    WeightType(String tensorType) {
        this.tensorType = tensorType;
    }

    /**
     * Parses a value of the option.
     *
     * @param value auto, fp32, bf16 or fp16
     * @return the type
     */
    public static WeightType parse(String value) {
        for (WeightType type : values()) {
            if (type.toString().equals(value.strip())) {
                return type;
            }
        }
        throw new IllegalArgumentException(
                "dtype '"
                        + value
                        + "' is not supported; choose one of "
                        + Arrays.stream(values())
                                .map(WeightType::toString)
                                .collect(Collectors.joining(", "))
                        + ".");
    }

    String tensorType() {
        return tensorType;
    }

    /** {@inheritDoc} */
    @Override
    public String toString() {
        return name().toLowerCase(Locale.ROOT);
    }
}
