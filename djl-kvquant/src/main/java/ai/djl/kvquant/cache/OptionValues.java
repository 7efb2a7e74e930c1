/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.DoublePredicate;
import java.util.function.Function;
import java.util.function.IntPredicate;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

/** Options as they were given, read as values of a type: an error says what is allowed. */
final class OptionValues {

    private static final Pattern BYTES = Pattern.compile("(\\d{1,15})\\s*([kmgt]?)i?b?");

    private final Map<String, String> texts;

    OptionValues(Map<String, String> texts) {
        this.texts = texts;
    }

    /** Refuses names that begin as those of cache options do and are none. */
    void requireKnown(Set<String> names) {
        for (String name : new TreeSet<>(texts.keySet())) {
            String written = name.toLowerCase(Locale.ROOT).replace('-', '_');
            if (written.startsWith("kv_") && !names.contains(name)) {
                throw new IllegalArgumentException(
                        "Unknown option "
                                + name
                                + "; the cache options are "
                                + String.join(", ", names)
                                + ".");
            }
        }
    }

    /** Refuses an option that has an effect only on another condition. */
    void refuse(String name, String condition, CacheDtype dtype) {
        refuse(name, condition, dtype, "a quantized kv_cache_dtype");
    }

    /** Refuses an option that has an effect only on another condition, met by some data types. */
    void refuse(String name, String condition, CacheDtype dtype, String better) {
        if (has(name)) {
            throw new IllegalArgumentException(
                    name
                            + " has an effect only when "
                            + condition
                            + "; kv_cache_dtype is "
                            + dtype.name()
                            + ". Remove it or choose "
                            + better
                            + ".");
        }
    }

    boolean has(String name) {
        return texts.containsKey(name);
    }

    String text(String name, String fallback) {
        return texts.getOrDefault(name, fallback).strip();
    }

    boolean bool(String name, boolean fallback) {
        return read(
                name,
                Boolean.toString(fallback),
                text ->
                        switch (text) {
                            case "true" -> true;
                            case "false" -> false;
                            default -> null;
                        },
                "true, false");
    }

    /** A constant by its name in lower case. */
    <E extends Enum<E>> E constant(String name, E fallback) {
        Map<String, E> constants =
                Arrays.stream(fallback.getDeclaringClass().getEnumConstants())
                        .collect(
                                Collectors.toMap(
                                        OptionValues::nameOf,
                                        constant -> constant,
                                        (one, other) -> one,
                                        LinkedHashMap::new));
        return read(name, nameOf(fallback), constants::get, String.join(", ", constants.keySet()));
    }

    static String nameOf(Enum<?> constant) {
        return constant.name().toLowerCase(Locale.ROOT);
    }

    int integer(String name, int fallback, int low, int high) {
        return integer(
                name,
                fallback,
                number -> number >= low && number <= high,
                "a whole number from " + low + " to " + high);
    }

    int integer(String name, int fallback, IntPredicate possible, String allowed) {
        return read(
                name,
                Integer.toString(fallback),
                text -> {
                    int number = Integer.parseInt(text);
                    return possible.test(number) ? number : null;
                },
                allowed);
    }

    double number(String name, double fallback, DoublePredicate possible, String allowed) {
        return read(
                name,
                Double.toString(fallback),
                text -> {
                    double number = Double.parseDouble(text);
                    return possible.test(number) ? number : null;
                },
                allowed);
    }

    /** A number of bytes, with a unit or without; 0 if it was not given. */
    long bytes(String name) {
        return has(name)
                ? read(
                        name,
                        "",
                        OptionValues::parseBytes,
                        "bytes, or a number with k, m or g, for example 2g")
                : 0;
    }

    /** The number times its unit; null where that is none or more than can be counted. */
    private static Long parseBytes(String text) {
        Matcher matcher = BYTES.matcher(text.toLowerCase(Locale.ROOT));
        if (!matcher.matches()) {
            return null;
        }
        String unit = matcher.group(2);
        int shift = unit.isEmpty() ? 0 : 10 * (1 + "kmgt".indexOf(unit));
        long number = Long.parseLong(matcher.group(1));
        return number == 0 || number > Long.MAX_VALUE >> shift ? null : number << shift;
    }

    /**
     * Reads a value.
     *
     * @param name the option's name
     * @param fallback what stands for it if it was not given
     * @param parser makes the value of the text; null, or a NumberFormatException: it is not
     *     allowed
     * @param allowed what is allowed, in words
     */
    <T> T read(String name, String fallback, Function<String, T> parser, String allowed) {
        String text = text(name, fallback);
        T value;
        try {
            value = parser.apply(text);
        } catch (NumberFormatException e) {
            value = null;
        }
        if (value == null) {
            throw new IllegalArgumentException(
                    name + " is '" + text + "'; allowed: " + allowed + ".");
        }
        return value;
    }
}
