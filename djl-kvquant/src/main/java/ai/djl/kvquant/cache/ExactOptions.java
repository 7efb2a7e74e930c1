/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.LongStream;

/**
 * What is kept exactly (sink tokens, recent tokens, whole layers), and how many of the other tokens
 * a decoding step reads.
 */
final class ExactOptions {

    static final String SINKS = "kv_sink_tokens";
    static final String RECENT = "kv_recent_tokens";
    static final String ROLLBACK = "kv_rollback_tokens";
    static final String SKIP_LAYERS = "kv_skip_layers";
    static final String SPARSE = "kv_sparse_tokens";

    private static final String MASSIVE = "massive";
    private static final int MAX_WINDOW = 1 << 20;
    private static final int MAX_SINKS = 1024;
    private static final int DEFAULT_ROLLBACK = 16;
    private static final int DEFAULT_WINDOW = 128;
    private static final int DEFAULT_SINKS = 4;

    private final OptionValues values;
    private final int window;
    private final int rollback;
    private final int sparseTokens;
    private final SinkPolicy sinkPolicy;
    private final int firstSinks;

    /**
     * Reads the options.
     *
     * @throws IllegalArgumentException if one has an impossible value or no effect
     */
    ExactOptions(OptionValues values, CacheDtype dtype) {
        this.values = values;
        CacheMethod method = dtype.keyMethod();
        boolean quantized = method.isQuantized();
        if (!quantized) {
            List.of(SPARSE, SINKS, RECENT, ROLLBACK)
                    .forEach(name -> values.refuse(name, "keys are quantized", dtype));
        }
        if (!dtype.isQuantized()) {
            values.refuse(SKIP_LAYERS, "keys or values are quantized", dtype);
        }
        int usual = method.keepsWindow() ? DEFAULT_WINDOW : 0;
        window = values.integer(RECENT, usual, 0, MAX_WINDOW);
        boolean massive = quantized && isMassive(values, dtype);
        firstSinks = quantized && !massive ? firstSinks(values, method) : 0;
        sinkPolicy =
                massive ? SinkPolicy.MASSIVE : firstSinks == 0 ? SinkPolicy.NONE : SinkPolicy.FIRST;
        rollback = values.integer(ROLLBACK, DEFAULT_ROLLBACK, 0, MAX_WINDOW);
        sparseTokens = values.has(SPARSE) ? values.integer(SPARSE, 0, 1, 1 << 30) : 0;
    }

    private static boolean isMassive(OptionValues values, CacheDtype dtype) {
        CacheMethod method = dtype.keyMethod();
        boolean massive =
                MASSIVE.equals(values.text(SINKS, method == CacheMethod.ROTATEKV ? MASSIVE : ""));
        if (massive && method.needsCalibration()) {
            throw new IllegalArgumentException(
                    "kv_sink_tokens is massive, which kv_cache_dtype "
                            + dtype.name()
                            + " does not offer; allowed: the number of first tokens to keep"
                            + " exactly.");
        }
        return massive;
    }

    /** Sinks where they are the first tokens: KVQuant keeps one. */
    private static int firstSinks(OptionValues values, CacheMethod method) {
        return values.integer(
                SINKS,
                method == CacheMethod.KVQUANT ? 1 : DEFAULT_SINKS,
                sinks -> sinks >= 0 && sinks <= MAX_SINKS,
                "massive (the prompt's massive activations) or the number of first tokens to keep"
                        + " exactly, 0 to "
                        + MAX_SINKS);
    }

    /** kv_recent_tokens, the recent tokens that are read exactly. */
    int window() {
        return window;
    }

    /** The window of each layer. */
    long[] windows(int numLayers) {
        Set<Integer> skipped = skipLayers(numLayers);
        return LongStream.range(0, numLayers)
                .map(layer -> skipped.contains((int) layer) ? 0 : window)
                .toArray();
    }

    /** kv_rollback_tokens, the tokens that can be taken back without loss of the window. */
    int rollback() {
        return rollback;
    }

    /** kv_sparse_tokens, the stored tokens that a decoding step chooses; 0: it reads all. */
    int sparseTokens() {
        return sparseTokens;
    }

    SinkPolicy sinkPolicy() {
        return sinkPolicy;
    }

    /** The first tokens that are sinks; 0 if sinks are chosen otherwise. */
    int firstSinks() {
        return firstSinks;
    }

    int maxSinks() {
        return sinkPolicy == SinkPolicy.MASSIVE ? KvCache.MASSIVE_ENTRIES : firstSinks;
    }

    /** kv_skip_layers, the layers that are kept in fp16. */
    Set<Integer> skipLayers(int numLayers) {
        return values.read(
                SKIP_LAYERS,
                "",
                text -> parseLayers(text, numLayers),
                "layer numbers 0 to " + (numLayers - 1) + ", separated by commas");
    }

    /** Layer numbers; null if there is another one. */
    private static Set<Integer> parseLayers(String text, int numLayers) {
        if (text.isEmpty()) {
            return Set.of();
        }
        Set<Integer> layers =
                Arrays.stream(text.split("[,;\\s]+"))
                        .map(Integer::valueOf)
                        .collect(Collectors.toSet());
        return layers.stream().allMatch(l -> l >= 0 && l < numLayers) ? layers : null;
    }
}
