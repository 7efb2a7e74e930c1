/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import java.util.HashMap;
import java.util.Map;

/** A calibration made up for tests: two layers, awkward values. */
final class TinyCalibration {

    static final String FINGERPRINT = "0123456789abcdef".repeat(4);
    static final String OTHER_FINGERPRINT = "fedcba9876543210".repeat(4);

    private TinyCalibration() {}

    static Map<String, String> metadata() {
        return new HashMap<>(
                Map.of(
                        Calibration.DTYPE,
                        "int2",
                        CalibrationFile.MODEL,
                        FINGERPRINT,
                        CalibrationFile.TEXT_SHA256,
                        "ab".repeat(32),
                        CalibrationFile.TOKENS,
                        "2048",
                        CalibrationFile.SETTINGS,
                        "{\"seed\": 1, \"note\": \"\u00e4\"}"));
    }

    static Calibration of(Map<String, String> metadata) {
        float[] mean = {-0f, 1f / 3, Float.MIN_VALUE, Float.MAX_VALUE, -1e-20f, 6};
        return new Calibration.Builder(metadata)
                .put(0, "key.mean", mean, 2, 3)
                .put(0, "empty", new float[0], 0, 4)
                .put(11, "key.step", new float[] {0.25f})
                .build();
    }

    static Calibration create() {
        return of(metadata());
    }
}
