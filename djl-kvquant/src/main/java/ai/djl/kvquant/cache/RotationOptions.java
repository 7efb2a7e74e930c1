/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.stream.Collectors;

/**
 * RotateKV's options, which take its ideas apart so that each can be measured.
 *
 * @param keys how keys are rotated
 * @param order in which order their channels are grouped; null: within the heads that are rotated
 *     together if there is a calibration, else natural
 * @param values whether values are rotated, head by head
 */
record RotationOptions(KeyRotation keys, KeyOrder order, boolean values) {

    static final String ROTATION = "kv_rotation";
    static final String ORDER = "kv_order";
    static final String VALUE_ROTATION = "kv_value_rotation";

    /** Options of codes with scales and zeros. */
    private static final List<String> CODES = List.of("kv_group_size", "kv_clip", "kv_float_zero");

    /**
     * Reads the options.
     *
     * @throws IllegalArgumentException if one has an impossible value or no effect
     */
    static RotationOptions of(Map<String, String> options, CacheDtype dtype) {
        boolean keys = dtype.keys().method() == CacheMethod.ROTATEKV;
        boolean values = dtype.values().method() == CacheMethod.ROTATEKV;
        requireEffect(options, dtype, keys, "keys are", List.of(ROTATION, ORDER));
        requireEffect(options, dtype, values, "values are", List.of(VALUE_ROTATION));
        if (dtype.isQuantized()) {
            requireEffect(options, dtype, keys || values, "keys or values are", CODES);
        }
        KeyRotation rotation = parse(options, ROTATION, KeyRotation.PRE_ROPE);
        KeyOrder order =
                options.containsKey(ORDER) ? parse(options, ORDER, KeyOrder.NATURAL) : null;
        String valueRotation = options.getOrDefault(VALUE_ROTATION, "true").strip();
        if (!"true".equals(valueRotation) && !"false".equals(valueRotation)) {
            throw notAllowed(VALUE_ROTATION, valueRotation, "true, false");
        }
        RotationOptions parsed =
                new RotationOptions(rotation, order, Boolean.parseBoolean(valueRotation));
        parsed.requireSense();
        return parsed;
    }

    /** Whether channels keep their natural order whatever was calibrated. */
    boolean isNatural() {
        return order == KeyOrder.NATURAL || !keys.isPreRope();
    }

    /** Whether an order was asked for that only a calibration can tell. */
    boolean needsCalibration() {
        return order != null && order != KeyOrder.NATURAL;
    }

    /** The order of a layer's channels; null: natural. */
    int[] channels(Calibration calibration, int layer, CacheGeometry geometry) {
        if (calibration == null || isNatural()) {
            return null;
        }
        KeyOrder chosen = order == null ? KeyOrder.GROUP : order;
        float[] mean = calibration.get(layer, "keys.mean");
        return chosen.channels(mean, geometry.headDim(), keys.heads(geometry));
    }

    private void requireSense() {
        if (needsCalibration() && !keys.isPreRope()) {
            throw new IllegalArgumentException(
                    ORDER
                            + " is "
                            + name(order)
                            + ", but "
                            + ROTATION
                            + " is "
                            + name(keys)
                            + " and keys after RoPE have no mean to be sorted by. Remove "
                            + ORDER
                            + " or set "
                            + ROTATION
                            + " to pre_rope or pre_rope_head.");
        }
    }

    /** Refuses a calibration where keys keep their natural order and nothing else needs one. */
    void refuseCalibration(Map<String, String> options) {
        if (isNatural() && options.containsKey("kv_calibration")) {
            String cause =
                    order == null ? ROTATION + " is " + name(keys) : ORDER + " is " + name(order);
            throw new IllegalArgumentException(
                    "kv_calibration has no effect, since "
                            + cause
                            + " and only the order of channels is calibrated. Remove one of"
                            + " them.");
        }
    }

    private static void requireEffect(
            Map<String, String> options,
            CacheDtype dtype,
            boolean effective,
            String sides,
            List<String> names) {
        for (String name : names) {
            if (!effective && options.containsKey(name)) {
                throw new IllegalArgumentException(
                        name
                                + " has an effect only when "
                                + sides
                                + " stored by rotatekv; kv_cache_dtype is "
                                + dtype.name()
                                + ". Remove it or choose a kv_cache_dtype such as rotatekv4.");
            }
        }
    }

    private static <E extends Enum<E>> E parse(
            Map<String, String> options, String name, E fallback) {
        String value = options.getOrDefault(name, name(fallback)).strip();
        E[] allowed = fallback.getDeclaringClass().getEnumConstants();
        return Arrays.stream(allowed)
                .filter(constant -> name(constant).equals(value))
                .findFirst()
                .orElseThrow(
                        () ->
                                notAllowed(
                                        name,
                                        value,
                                        Arrays.stream(allowed)
                                                .map(RotationOptions::name)
                                                .collect(Collectors.joining(", "))));
    }

    private static IllegalArgumentException notAllowed(String name, String value, String allowed) {
        return new IllegalArgumentException(
                name + " is '" + value + "'; allowed: " + allowed + ".");
    }

    private static String name(Enum<?> constant) {
        return constant.name().toLowerCase(Locale.ROOT);
    }
}
