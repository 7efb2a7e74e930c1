/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.kvquant.generate.BatchLimits;
import java.util.List;
import java.util.Map;

/** Reads how much a model's scheduler does at once. */
final class BatchOptions {

    private static final String RUNNING = "max_running_requests";
    private static final String WAITING = "max_waiting_requests";
    private static final String PREFILL = "prefill_chunk_tokens";
    static final List<String> NAMES = List.of(RUNNING, WAITING, PREFILL);

    private static final int MOST = 1 << 20;

    private BatchOptions() {}

    /**
     * Reads the limits.
     *
     * @param maxBatchSize the sequences that the cache is made for, which may all run
     * @throws IllegalArgumentException if one has an impossible value
     */
    static BatchLimits read(Map<String, String> settings, int maxBatchSize) {
        BatchLimits defaults = BatchLimits.DEFAULT;
        int running = Math.max(defaults.maxRunning(), maxBatchSize);
        return new BatchLimits(
                integer(settings, RUNNING, running),
                integer(settings, WAITING, defaults.maxWaiting()),
                integer(settings, PREFILL, defaults.prefillTokens()));
    }

    /**
     * Refuses limits where there is nothing to be limited.
     *
     * @throws IllegalArgumentException if one is set
     */
    static void requireNone(Map<String, String> settings) {
        for (String name : NAMES) {
            if (settings.containsKey(name)) {
                throw new IllegalArgumentException(
                        name
                                + " is "
                                + settings.get(name)
                                + ", but the calls of a traced model are not scheduled, so that it"
                                + " would have no effect; remove it.");
            }
        }
    }

    private static int integer(Map<String, String> settings, String name, int fallback) {
        String text = settings.get(name);
        if (text == null) {
            return fallback;
        }
        try {
            int number = Integer.parseInt(text.strip());
            if (number >= 1 && number <= MOST) {
                return number;
            }
        } catch (NumberFormatException e) {
            // Told below.
        }
        throw new IllegalArgumentException(
                name + " is '" + text + "'; allowed: a whole number from 1 to " + MOST + ".");
    }
}
