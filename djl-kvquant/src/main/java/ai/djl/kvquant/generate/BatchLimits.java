/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

/**
 * How much a {@link BatchScheduler} does at once.
 *
 * @param maxRunning the most sequences that are decoded together
 * @param maxWaiting the most sequences that wait for their turn; more are refused
 * @param prefillTokens the most tokens of prompts that are computed at a time; while others run,
 *     the work on them is divided between some decoding steps. Fewer let running streams wait less,
 *     more compute prompts faster
 */
public record BatchLimits(int maxRunning, int maxWaiting, int prefillTokens) {

    /** 16 sequences together, 1024 waiting, 512 tokens of prompts at a time. */
    public static final BatchLimits DEFAULT = new BatchLimits(16, 1024, 512);

    /**
     * Creates limits.
     *
     * @param maxRunning the most sequences that are decoded together
     * @param maxWaiting the most sequences that wait for their turn
     * @param prefillTokens the most tokens of prompts that are computed at a time
     * @throws IllegalArgumentException if one is less than 1
     */
    public BatchLimits {
        require("maxRunning", maxRunning);
        require("maxWaiting", maxWaiting);
        require("prefillTokens", prefillTokens);
    }

    private static void require(String name, int value) {
        if (value < 1) {
            throw new IllegalArgumentException(name + " is " + value + "; allowed: 1 or more.");
        }
    }
}
