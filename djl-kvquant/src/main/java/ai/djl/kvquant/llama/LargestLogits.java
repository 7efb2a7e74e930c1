/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.ndarray.NDArray;
import java.util.Arrays;
import java.util.Optional;

/** The tokens with the largest logits, found on the device that the logits are on. */
final class LargestLogits {

    private LargestLogits() {}

    /**
     * Finds each row's token; of equal logits the one with the smallest id.
     *
     * @param logits FLOAT32 {@code [rows, vocabulary]}
     * @return the token ids; empty if a row has a NaN or no finite largest logit
     */
    static Optional<int[]> tokens(NDArray logits) {
        try (NDArray best = logits.argMax(1);
                NDArray largest = logits.max(new int[] {1})) {
            // A NaN counts as the largest.
            for (float logit : largest.toFloatArray()) {
                if (!Float.isFinite(logit)) {
                    return Optional.empty();
                }
            }
            return Optional.of(
                    Arrays.stream(best.toLongArray()).mapToInt(Math::toIntExact).toArray());
        }
    }
}
