/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.StringJoiner;

/**
 * A value of the option {@code kv_cache_dtype}: one name for keys and values, or a pair {@code
 * K/V}.
 *
 * @param name the value as the user wrote it, with a slash in a pair
 * @param keys how keys are stored
 * @param values how values are stored
 */
public record CacheDtype(String name, Side keys, Side values) {

    private static final Map<String, Side> SIDES = new LinkedHashMap<>();

    static {
        SIDES.put("auto", new Side(CacheMethod.AUTO, 32));
        SIDES.put("fp16", new Side(CacheMethod.FP16, 16));
        for (int bits : new int[] {8, 4, 3, 2}) {
            SIDES.put("int" + bits, new Side(CacheMethod.INT, bits));
        }
        for (int bits : new int[] {4, 3, 2}) {
            SIDES.put("latent" + bits, new Side(CacheMethod.LATENT, bits));
        }
        SIDES.put("latent1.5", new Side(CacheMethod.LATENT, 1.5));
        for (int bits : new int[] {4, 3, 2}) {
            SIDES.put("rotatekv" + bits, new Side(CacheMethod.ROTATEKV, bits));
        }
        for (int bits : new int[] {4, 3, 2}) {
            SIDES.put("kvquant" + bits, new Side(CacheMethod.KVQUANT, bits));
        }
        SIDES.put("svdq2.25", new Side(CacheMethod.SVDQ, 2.25));
        SIDES.put("svdq1.25", new Side(CacheMethod.SVDQ, 1.25));
    }

    /**
     * How one side is stored.
     *
     * @param method the method
     * @param bits the bits of a stored element, without what is stored beside codes
     */
    record Side(CacheMethod method, double bits) {}

    /**
     * Parses a value.
     *
     * @param value a name, or key and value names joined by a slash or a comma
     * @return the data type
     * @throws IllegalArgumentException if there is no such data type
     */
    public static CacheDtype parse(String value) {
        String[] parts = value.strip().split("[/,]", -1);
        Side keys = SIDES.get(parts[0].strip());
        Side values = SIDES.get(parts[parts.length - 1].strip());
        if (parts.length > 2 || keys == null || values == null) {
            StringJoiner allowed = new StringJoiner(", ");
            SIDES.keySet().forEach(allowed::add);
            throw new IllegalArgumentException(
                    "kv_cache_dtype '"
                            + value
                            + "' is not supported; choose one of "
                            + allowed
                            + " or a pair K/V such as rotatekv4/rotatekv2.");
        }
        String name = parts[0].strip();
        if (values.method() == CacheMethod.SVDQ) {
            if (parts.length == 2) {
                throw new IllegalArgumentException(
                        "kv_cache_dtype '"
                                + value
                                + "' stores values with SVDq, which is for keys only; choose a pair"
                                + " such as "
                                + (keys.method() == CacheMethod.SVDQ ? name : "svdq2.25")
                                + "/int4.");
            }
            values = SIDES.get("int4");
        }
        return new CacheDtype(
                parts.length == 1 ? name : name + "/" + parts[1].strip(), keys, values);
    }

    /**
     * Returns the name of the method of keys.
     *
     * @return the first name of a pair, else the name
     */
    public String keyName() {
        return name.split("/")[0];
    }

    /**
     * Returns how keys are stored.
     *
     * @return the method
     */
    public CacheMethod keyMethod() {
        return keys.method();
    }

    /**
     * Returns the bits of a stored key element.
     *
     * @return the bits, without what is stored beside codes
     */
    public double keyBits() {
        return keys.bits();
    }

    boolean isQuantized() {
        return keys.method().isQuantized() || values.method().isQuantized();
    }

    /**
     * Returns the name of the method of values.
     *
     * @return the second name of a pair, else the name
     */
    public String valueName() {
        return name.substring(name.indexOf('/') + 1);
    }

    /**
     * Returns how values are stored.
     *
     * @return the method
     */
    public CacheMethod valueMethod() {
        return values.method();
    }

    /**
     * Returns the bits of a stored value element.
     *
     * @return the bits, without what is stored beside codes
     */
    public double valueBits() {
        return values.bits();
    }

    /** Whether a method stores keys or values. */
    boolean uses(CacheMethod method) {
        return keys.method() == method || values.method() == method;
    }

    /**
     * Returns the names that can be used alone or in a pair.
     *
     * @return the names
     */
    public static List<String> names() {
        return new ArrayList<>(SIDES.keySet());
    }
}
