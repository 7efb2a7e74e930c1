/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

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

    /**
     * Reads the options.
     *
     * @throws IllegalArgumentException if one has an impossible value or no effect
     */
    static RotationOptions of(OptionValues values, CacheDtype dtype) {
        if (dtype.keyMethod() != CacheMethod.ROTATEKV) {
            refuse(values, ROTATION, "keys are", dtype);
            refuse(values, ORDER, "keys are", dtype);
        }
        if (dtype.valueMethod() != CacheMethod.ROTATEKV) {
            refuse(values, VALUE_ROTATION, "values are", dtype);
        }
        RotationOptions parsed =
                new RotationOptions(
                        values.constant(ROTATION, KeyRotation.PRE_ROPE),
                        values.has(ORDER) ? values.constant(ORDER, KeyOrder.NATURAL) : null,
                        values.bool(VALUE_ROTATION, true));
        parsed.requireSense();
        return parsed;
    }

    /** Refuses an option that has an effect only when one side or the other is RotateKV's. */
    static void refuse(OptionValues values, String name, String sides, CacheDtype dtype) {
        values.refuse(
                name, sides + " stored by rotatekv", dtype, "a kv_cache_dtype such as rotatekv4");
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
                            + OptionValues.nameOf(order)
                            + ", but "
                            + ROTATION
                            + " is "
                            + OptionValues.nameOf(keys)
                            + " and keys after RoPE have no mean to be sorted by. Remove "
                            + ORDER
                            + " or set "
                            + ROTATION
                            + " to pre_rope or pre_rope_head.");
        }
    }

    /** Refuses a calibration where keys keep their natural order and nothing else needs one. */
    void refuseCalibration(OptionValues values) {
        if (isNatural() && values.has(CacheOptions.CALIBRATION)) {
            String cause =
                    order == null
                            ? ROTATION + " is " + OptionValues.nameOf(keys)
                            : ORDER + " is " + OptionValues.nameOf(order);
            throw new IllegalArgumentException(
                    "kv_calibration has no effect, since "
                            + cause
                            + " and only the order of channels is calibrated. Remove one of"
                            + " them.");
        }
    }
}
