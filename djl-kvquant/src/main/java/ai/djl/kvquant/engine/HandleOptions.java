/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import java.util.List;
import java.util.Map;

/**
 * How DJL's contract for causal language models is kept.
 *
 * @param keepHandles keep_handles, whether callers go back to earlier keys and values
 * @param promptLogits prompt_logits, whether logits of all of a prompt's tokens are returned
 */
record HandleOptions(boolean keepHandles, boolean promptLogits) {

    private static final String KEEP = "keep_handles";
    private static final String LOGITS = "prompt_logits";
    static final List<String> NAMES = List.of(KEEP, LOGITS);

    /**
     * Reads the options.
     *
     * @throws IllegalArgumentException if one has an impossible value
     */
    static HandleOptions of(Map<String, String> settings) {
        return new HandleOptions(
                choice(settings, KEEP, "false", "true"), choice(settings, LOGITS, "last", "all"));
    }

    /** Whether it is the second value, not the first, which is the usual one. */
    private static boolean choice(
            Map<String, String> settings, String name, String usual, String other) {
        String value = settings.getOrDefault(name, usual);
        if (!List.of(usual, other).contains(value)) {
            throw new IllegalArgumentException(
                    name + " is '" + value + "'; allowed: " + usual + " or " + other + ".");
        }
        return value.equals(other);
    }
}
