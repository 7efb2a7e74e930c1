/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.cache.CacheDtype;
import ai.djl.kvquant.cache.CacheOptions;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Predicate;

/** The cache options that --kv-cache-dtype and --set stand for. */
final class CacheArguments {

    /** Which commands compare caches, for help and errors. */
    static final String TAKE_SEVERAL = "perplexity, eval, bench, calibrate and info take several";

    private static final String DTYPE = "kv_cache_dtype";

    private final Map<String, String> settings;
    private final List<String> dtypes;

    /**
     * Reads the arguments.
     *
     * @param defaults the data types without --kv-cache-dtype
     */
    CacheArguments(Kvq kvq, String... defaults) {
        settings = kvq.settings;
        dtypes = kvq.cacheDtypes.isEmpty() ? List.of(defaults) : kvq.cacheDtypes;
        for (String name : settings.keySet()) {
            if (DTYPE.equals(name) || !name.startsWith("kv_") && !"max_batch_size".equals(name)) {
                throw new IllegalArgumentException(
                        "--set "
                                + name
                                + " is not a cache option; allowed: kv_…=value except "
                                + DTYPE
                                + " (use --kv-cache-dtype), and max_batch_size.");
            }
        }
    }

    /** The one cache of commands that do not compare. */
    CacheOptions single() {
        if (dtypes.size() > 1) {
            throw new IllegalArgumentException(
                    "--kv-cache-dtype is given "
                            + dtypes.size()
                            + " times; only "
                            + TAKE_SEVERAL
                            + ".");
        }
        return several(Map.of()).get(0);
    }

    /**
     * The caches to compare.
     *
     * <p>An option that has no effect on some of them, such as kv_group_size on auto, applies to
     * the others.
     *
     * @param defaults options that those of the command line override
     */
    List<CacheOptions> several(Map<String, String> defaults) {
        return named(defaults).stream().map(Named::options).toList();
    }

    /**
     * A cache and what tells it from others.
     *
     * @param label the data type, and behind a colon each the options that were set for it
     */
    record Named(String label, CacheOptions options) {}

    /** The caches to compare, as {@link #several}, with labels. */
    List<Named> named(Map<String, String> defaults) {
        List<Named> list = new ArrayList<>();
        for (String argument : dtypes) {
            String dtype = argument.split(":", 2)[0];
            Map<String, String> set = new TreeMap<>();
            settings.forEach(
                    (name, value) -> {
                        Predicate<String> takes = d -> takes(d.split(":", 2)[0], name, value);
                        if (takes.test(dtype) || dtypes.stream().noneMatch(takes)) {
                            set.put(name, value);
                        }
                    });
            set.putAll(ownSettings(argument));
            Map<String, String> values = new LinkedHashMap<>(defaults);
            values.putAll(set);
            values.put(DTYPE, dtype);
            list.add(new Named(label(dtype, set), new CacheOptions(values)));
        }
        return list;
    }

    /** What stands behind the data type: :kv_x=y, any number of times. */
    private static Map<String, String> ownSettings(String argument) {
        Map<String, String> own = new LinkedHashMap<>();
        String[] parts = argument.split(":", -1);
        for (int i = 1; i < parts.length; ++i) {
            String[] pair = parts[i].split("=", 2);
            if (pair.length < 2 || DTYPE.equals(pair[0]) || !pair[0].startsWith("kv_")) {
                throw new IllegalArgumentException(
                        "--kv-cache-dtype "
                                + argument
                                + ": '"
                                + parts[i]
                                + "' is not a cache option; write NAME:kv_x=y, for example"
                                + " rotatekv2:kv_recent_tokens=128.");
            }
            own.put(pair[0], pair[1]);
        }
        return own;
    }

    /** A calibration file is told by its name: where it lies says nothing. */
    private static String label(String dtype, Map<String, String> set) {
        StringBuilder label = new StringBuilder(CacheDtype.parse(dtype).name());
        set.forEach(
                (name, value) -> {
                    boolean path = "kv_calibration".equals(name);
                    label.append(':').append(name).append('=');
                    label.append(path ? Path.of(value).getFileName() : value);
                });
        return label.toString();
    }

    private static boolean takes(String dtype, String name, String value) {
        try {
            new CacheOptions(Map.of(DTYPE, dtype, name, value));
            return true;
        } catch (IllegalArgumentException e) {
            return false;
        }
    }
}
