/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.util.ArrayList;
import java.util.List;

/**
 * What is measured.
 *
 * @param depth tokens in the cache before decoding; {@link #MAX}: as many as fit
 * @param batch sequences; {@link #MAX}: as many as fit
 */
record BenchCase(int depth, int batch) {

    static final int MAX = -1;

    boolean hasMax() {
        return depth == MAX || batch == MAX;
    }

    /**
     * Reads values of options.
     *
     * @throws IllegalArgumentException if one is too small, or both are max
     */
    static List<BenchCase> of(List<String> depths, List<String> batches) {
        List<BenchCase> cases = new ArrayList<>();
        for (String depth : depths) {
            for (String batch : batches) {
                BenchCase one =
                        new BenchCase(number("--depth", depth, 0), number("--batch", batch, 1));
                if (one.depth == MAX && one.batch == MAX) {
                    throw new IllegalArgumentException(
                            "--depth and --batch are both max; allowed: one of them.");
                }
                cases.add(one);
            }
        }
        return cases;
    }

    private static int number(String option, String text, int least) {
        if ("max".equals(text)) {
            return MAX;
        }
        try {
            int value = Integer.parseInt(text);
            if (value >= least) {
                return value;
            }
        } catch (NumberFormatException e) {
            // told below
        }
        throw new IllegalArgumentException(
                option + " is " + text + "; allowed: " + least + " or more, or max.");
    }
}
