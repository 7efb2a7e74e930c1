/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Collection;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;
import java.util.TreeSet;

/**
 * The names of options. DJL hands on whatever it is given, much of it meant for others, so that a
 * name is refused only if it is one of these but for its spelling.
 */
public final class OptionNames {

    private static final String PREFIX = "kv";
    private static final String CACHE = "kvcache";

    private final Map<String, String> bySqueezed = new HashMap<>();

    /**
     * Creates a set of names.
     *
     * @param names the names, as they are to be written
     */
    public OptionNames(Collection<String> names) {
        for (String name : names) {
            String squeezed = squeeze(name);
            bySqueezed.put(squeezed, name);
            if (squeezed.startsWith(CACHE)) {
                bySqueezed.put(squeezed.substring(PREFIX.length()), name);
            }
        }
    }

    /**
     * Refuses names that differ from one of these in case, hyphens or underscores only, or that
     * leave out the {@code kv_} of {@code kv_cache_...}.
     *
     * @param given the names of all options that were given
     * @throws IllegalArgumentException if one would have no effect as it is written
     */
    public void requireSpelling(Collection<String> given) {
        for (String name : new TreeSet<>(given)) {
            String meant = bySqueezed.getOrDefault(squeeze(name), name);
            if (!meant.equals(name)) {
                throw new IllegalArgumentException(
                        "Unknown option " + name + "; did you mean " + meant + "?");
            }
        }
    }

    private static String squeeze(String name) {
        return name.toLowerCase(Locale.ROOT).replace("-", "").replace("_", "");
    }
}
