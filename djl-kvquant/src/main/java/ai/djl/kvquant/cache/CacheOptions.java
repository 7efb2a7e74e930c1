/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

/**
 * The cache options of a model: {@code kv_cache_dtype} and the expert options, checked.
 *
 * <p>Options that do not begin with {@code kv_} belong to others and are ignored, except {@code
 * max_batch_size}.
 */
public final class CacheOptions {

    private static final Set<String> NAMES =
            new LinkedHashSet<>(
                    Arrays.asList(
                            "kv_cache_dtype",
                            "kv_group_size",
                            "kv_sink_tokens",
                            "kv_recent_tokens",
                            "kv_rollback_tokens",
                            "kv_skip_layers",
                            "kv_clip",
                            "kv_float_zero",
                            "kv_cache_tokens",
                            "kv_cache_memory"));
    private static final int MAX_WINDOW = 1 << 20;
    private static final int MAX_SINKS = 1024;
    private static final int DEFAULT_BATCH = 4;
    private static final int DEFAULT_ROLLBACK = 16;

    private final Map<String, String> values;
    private final CacheDtype dtype;

    /**
     * Reads options.
     *
     * @param values option values by name, as text
     * @throws IllegalArgumentException if an option is unknown or has an impossible value
     */
    public CacheOptions(Map<String, String> values) {
        this.values = Map.copyOf(values);
        for (String name : new TreeSet<>(values.keySet())) {
            if (name.startsWith("kv_") && !NAMES.contains(name)) {
                throw new IllegalArgumentException(
                        "Unknown option "
                                + name
                                + "; the cache options are "
                                + String.join(", ", NAMES)
                                + ".");
            }
        }
        dtype = CacheDtype.parse(values.getOrDefault("kv_cache_dtype", "auto"));
        if (quantizedKeys()) {
            window();
            sinkPolicy();
            rollback();
        } else {
            refuse("kv_sink_tokens", "keys are quantized");
            refuse("kv_recent_tokens", "keys are quantized");
            refuse("kv_rollback_tokens", "keys are quantized");
        }
        if (!quantizedKeys() && !quantizedValues()) {
            refuse("kv_group_size", "keys or values are quantized");
            refuse("kv_clip", "keys or values are quantized");
            refuse("kv_float_zero", "keys or values are quantized");
            refuse("kv_skip_layers", "keys or values are quantized");
        }
        floatZero();
        clip(2);
        maxBatchSize();
        cacheTokens();
        cacheMemory();
    }

    /**
     * Returns options with nothing but a data type.
     *
     * @param dtype a value of kv_cache_dtype
     * @return the options
     */
    public static CacheOptions of(String dtype) {
        return new CacheOptions(Map.of("kv_cache_dtype", dtype));
    }

    /**
     * Returns the data type.
     *
     * @return the data type
     */
    public CacheDtype dtype() {
        return dtype;
    }

    /**
     * Returns max_batch_size, the number of sequences that the default size of the cache allows
     * for.
     *
     * @return the number of sequences
     */
    public int maxBatchSize() {
        return integer("max_batch_size", DEFAULT_BATCH, 1, 1 << 16);
    }

    /**
     * Returns the options of a cache in which evaluation stores a whole text: without a window,
     * with room for one sequence.
     *
     * @param tokens the longest text
     * @return the options
     */
    public CacheOptions forEvaluation(int tokens) {
        Map<String, String> changed = new HashMap<>(values);
        changed.remove("kv_cache_memory");
        changed.put("kv_cache_tokens", Integer.toString(tokens));
        changed.put("max_batch_size", "1");
        if (quantizedKeys()) {
            changed.put("kv_recent_tokens", "0");
        }
        return new CacheOptions(changed);
    }

    boolean quantizedKeys() {
        return dtype.keys().method() == CacheMethod.ROTATEKV;
    }

    boolean quantizedValues() {
        return dtype.values().method() == CacheMethod.ROTATEKV;
    }

    /**
     * Returns kv_recent_tokens, the recent tokens that are read exactly; RotateKV has no such
     * window by default.
     *
     * @return the window, in tokens
     */
    public int window() {
        return quantizedKeys() ? integer("kv_recent_tokens", 0, 0, MAX_WINDOW) : 0;
    }

    int rollback() {
        return integer("kv_rollback_tokens", DEFAULT_ROLLBACK, 0, MAX_WINDOW);
    }

    SinkPolicy sinkPolicy() {
        if (!quantizedKeys()) {
            return SinkPolicy.NONE;
        }
        if ("massive".equals(values.getOrDefault("kv_sink_tokens", "massive"))) {
            return SinkPolicy.MASSIVE;
        }
        return firstSinks() == 0 ? SinkPolicy.NONE : SinkPolicy.FIRST;
    }

    int maxSinks() {
        return switch (sinkPolicy()) {
            case NONE -> 0;
            case FIRST -> firstSinks();
            case MASSIVE -> KvCache.MASSIVE_ENTRIES;
        };
    }

    private int firstSinks() {
        String value = values.get("kv_sink_tokens");
        try {
            return integer("kv_sink_tokens", 0, 0, MAX_SINKS);
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException(
                    "kv_sink_tokens is '"
                            + value
                            + "'; allowed: massive (the prompt's massive activations) or the number"
                            + " of first tokens to keep exactly, 0 to "
                            + MAX_SINKS
                            + ".",
                    e);
        }
    }

    int groupSize(CacheGeometry geometry) {
        String value = values.getOrDefault("kv_group_size", "" + geometry.headDim());
        try {
            int size = Integer.parseInt(value.strip());
            if (size >= 16 && size % 16 == 0 && geometry.channels() % size == 0) {
                return size;
            }
        } catch (NumberFormatException e) {
            // The message below says what is allowed.
        }
        throw new IllegalArgumentException(
                "kv_group_size is '"
                        + value
                        + "'; allowed: multiples of 16 that divide the "
                        + geometry.channels()
                        + " key channels of a layer.");
    }

    /** RotateKV's clip ratio, 0.8 at 2 bits and 1 above. */
    float clip(int bits) {
        String value = values.get("kv_clip");
        if (value == null) {
            return bits == 2 ? 0.8f : 1f;
        }
        try {
            float clip = Float.parseFloat(value);
            if (clip > 0 && clip <= 1) {
                return clip;
            }
        } catch (NumberFormatException e) {
            // The message below says what is allowed.
        }
        throw new IllegalArgumentException(
                "kv_clip is '" + value + "'; allowed: a number above 0 and at most 1.");
    }

    boolean floatZero() {
        String value = values.getOrDefault("kv_float_zero", "false");
        if (!"true".equals(value) && !"false".equals(value)) {
            throw new IllegalArgumentException(
                    "kv_float_zero is '" + value + "'; allowed: true, false.");
        }
        return Boolean.parseBoolean(value);
    }

    /** Layers that are kept in fp16. */
    Set<Integer> skipLayers(int numLayers) {
        String value = values.getOrDefault("kv_skip_layers", "").strip();
        if (value.isEmpty()) {
            return Set.of();
        }
        try {
            Set<Integer> layers =
                    Arrays.stream(value.split("[,;\\s]+"))
                            .map(Integer::valueOf)
                            .collect(Collectors.toSet());
            if (layers.stream().allMatch(l -> l >= 0 && l < numLayers)) {
                return layers;
            }
        } catch (NumberFormatException e) {
            // The message below says what is allowed.
        }
        throw new IllegalArgumentException(
                "kv_skip_layers is '"
                        + value
                        + "'; allowed: layer numbers 0 to "
                        + (numLayers - 1)
                        + ", separated by commas.");
    }

    /** kv_cache_tokens, or 0 if it is not set. */
    long cacheTokens() {
        if (values.containsKey("kv_cache_tokens") && values.containsKey("kv_cache_memory")) {
            throw new IllegalArgumentException(
                    "kv_cache_tokens and kv_cache_memory are both set; set one of them.");
        }
        return integer(
                "kv_cache_tokens", 0, values.containsKey("kv_cache_tokens") ? 1 : 0, 1 << 30);
    }

    /** kv_cache_memory in bytes, or 0 if it is not set. */
    long cacheMemory() {
        String value = values.get("kv_cache_memory");
        if (value == null) {
            return 0;
        }
        String text = value.strip().toLowerCase(Locale.ROOT);
        Matcher matcher = Pattern.compile("(\\d{1,15})\\s*([kmgt]?)i?b?").matcher(text);
        if (!matcher.matches() || bytes(matcher) <= 0) {
            throw new IllegalArgumentException(
                    "kv_cache_memory is '"
                            + value
                            + "'; allowed: bytes, or a number with k, m or g, for example 2g.");
        }
        return bytes(matcher);
    }

    /** The number times its unit; 0 where that is more than can be counted. */
    private static long bytes(Matcher matcher) {
        String unit = matcher.group(2);
        int shift = unit.isEmpty() ? 0 : 10 * (1 + "kmgt".indexOf(unit));
        long number = Long.parseLong(matcher.group(1));
        return number > Long.MAX_VALUE >> shift ? 0 : number << shift;
    }

    private void refuse(String name, String condition) {
        if (values.containsKey(name)) {
            throw new IllegalArgumentException(
                    name
                            + " has an effect only when "
                            + condition
                            + "; kv_cache_dtype is "
                            + dtype.name()
                            + ". Remove it or choose a quantized kv_cache_dtype.");
        }
    }

    private int integer(String name, int fallback, int low, int high) {
        String value = values.get(name);
        if (value == null) {
            return fallback;
        }
        try {
            int number = Integer.parseInt(value.strip());
            if (number >= low && number <= high) {
                return number;
            }
        } catch (NumberFormatException e) {
            // The message below says what is allowed.
        }
        throw new IllegalArgumentException(
                name
                        + " is '"
                        + value
                        + "'; allowed: a whole number from "
                        + low
                        + " to "
                        + high
                        + ".");
    }
}
