/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.cache.CacheOptions;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;

/** The cache options that --kv-cache-dtype and --set stand for. */
final class CacheArguments {

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
                            + " times; only perplexity and bench compare several.");
        }
        return several(Map.of()).get(0);
    }

    /**
     * The caches to compare.
     *
     * <p>An option that has no effect on some of them, such as kv_group_size on auto, applies to
     * the others.
     *
     * @param defaults options that --set overrides
     */
    List<CacheOptions> several(Map<String, String> defaults) {
        List<CacheOptions> list = new ArrayList<>();
        for (String dtype : dtypes) {
            Map<String, String> values = new LinkedHashMap<>(defaults);
            settings.forEach(
                    (name, value) -> {
                        Predicate<String> takes = d -> takes(d, name, value);
                        if (takes.test(dtype) || dtypes.stream().noneMatch(takes)) {
                            values.put(name, value);
                        }
                    });
            values.put(DTYPE, dtype);
            list.add(new CacheOptions(values));
        }
        return list;
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
