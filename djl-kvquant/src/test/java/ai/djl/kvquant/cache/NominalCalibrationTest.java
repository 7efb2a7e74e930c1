/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class NominalCalibrationTest {

    private static final CacheGeometry GEOMETRY =
            new CacheGeometry(2, 9, 3, 64, 0.125, new double[32], 1000);

    private static Calibration calibration(Map<String, String> options) {
        return new CacheOptions(options).forSizes(GEOMETRY).calibration();
    }

    /** What reads keys is chosen by their basis: without one, speed would be another format's. */
    @ParameterizedTest
    @CsvSource({
        "latent2,head,64",
        "latent2,layer,192",
        "latent4,band16,64",
        "svdq2.25,layer,192",
        "svdq1.25/int2,prompt,192"
    })
    void keysHaveABasisOfTheSizeOfARealOne(String dtype, String basis, int size) {
        Calibration calibration = calibration(Map.of("kv_cache_dtype", dtype, "kv_basis", basis));
        for (String name : new String[] {"keys.basis", "keys.inverse"}) {
            float[] values = calibration.get(1, name);
            assertEquals(192 * size, values.length);
            for (int i = 0; i < values.length; ++i) {
                int row = i / size;
                assertEquals(i % size == row % size ? 1f : 0f, values[i]);
            }
        }
        assertFalse(calibration.has(1, "keys.order"));
    }

    @Test
    void codesOfChannelsHaveAnOrder() {
        Calibration calibration = calibration(Map.of("kv_cache_dtype", "int2"));
        assertEquals(192, calibration.integers(0, "keys.order").length);
        assertFalse(calibration.has(0, "keys.basis"));
    }
}
