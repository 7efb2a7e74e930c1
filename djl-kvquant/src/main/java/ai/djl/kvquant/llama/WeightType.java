/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.types.DataType;
import java.util.Arrays;
import java.util.Locale;
import java.util.stream.Collectors;

/**
 * The option {@code dtype}: the type in which weights are kept. On a CPU it is computed in fp32
 * whatever the weights are, on a GPU in their type.
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

    /** Bytes of an element; AUTO has none. */
    int bytes() {
        return this == FP32 ? Float.BYTES : Short.BYTES;
    }

    String tensorType() {
        return tensorType;
    }

    /** libtorch's number of the type. */
    int torchType() {
        return Operators.typeNumber(tensorType);
    }

    /** The type of a checkpoint's tensors. */
    static WeightType of(DataType dtype) {
        return switch (dtype) {
            case FLOAT32 -> FP32;
            case FLOAT16 -> FP16;
            case BFLOAT16 -> BF16;
            default -> throw new IllegalStateException("Checkpoint let dtype " + dtype + " pass");
        };
    }

    /** {@inheritDoc} */
    @Override
    public String toString() {
        return name().toLowerCase(Locale.ROOT);
    }
}
