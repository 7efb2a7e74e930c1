/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import java.util.Locale;
import java.util.OptionalLong;

/** Whether weights fit into a machine's memory: where they do not, it swaps for minutes or more. */
final class WeightMemory {

    private WeightMemory() {}

    /**
     * Refuses weights that are larger than what is free.
     *
     * @param bytes what they take, besides files that are read as they lie
     * @param free what is free; empty: not known
     * @param type the type in which they are kept
     * @param random whether they are made and not read
     * @throws IllegalArgumentException if they do not fit
     */
    static void require(long bytes, OptionalLong free, WeightType type, boolean random) {
        if (free.isEmpty() || bytes <= free.getAsLong()) {
            return;
        }
        throw new IllegalArgumentException(
                String.format(
                        Locale.ROOT,
                        "The weights take %.1f GiB of memory in %s, but %.1f GiB are free. %s a"
                                + " smaller model, or a GPU (Device.gpu(), kvq --device gpu).",
                        gib(bytes),
                        type,
                        gib(free.getAsLong()),
                        random
                                ? "Choose"
                                : "Leave dtype at auto, which reads them from their files as they"
                                        + " are, or choose"));
    }

    private static double gib(long bytes) {
        return (double) bytes / (1 << 30);
    }
}
