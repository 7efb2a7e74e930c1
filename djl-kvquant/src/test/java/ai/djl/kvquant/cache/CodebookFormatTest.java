/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.HashMap;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class CodebookFormatTest {

    private static final CacheGeometry GEOMETRY =
            new CacheGeometry(2, 9, 3, 64, 0.125, new double[32], 1000);

    private static CacheOptions options(String dtype, String... pairs) {
        Map<String, String> values = new HashMap<>(Map.of("kv_cache_dtype", dtype));
        for (int i = 0; i < pairs.length; i += 2) {
            values.put(pairs[i], pairs[i + 1]);
        }
        return new CacheOptions(values);
    }

    private static LayerFormat format(CacheOptions options) {
        return LayerFormat.of(GEOMETRY, options.forSizes(GEOMETRY), 1);
    }

    /** Codes, ranges of values and outliers count. */
    @ParameterizedTest
    @CsvSource({
        "kvquant2,0.01,2.5,2.5",
        "kvquant3,0.01,3.5,3.5",
        "kvquant4,0.01,4.5,4.5",
        "kvquant2,0,2,2.1666666",
        "kvquant2,0.02,3,2.8333333",
        "kvquant2/rotatekv4,0.01,2.5,4.5",
        "fp16/kvquant3,0.01,16,3.5"
    })
    void allThatIsStoredCounts(String dtype, String outliers, double keys, double values) {
        LayerFormat format = format(options(dtype, "kv_outliers", outliers));
        assertEquals(keys, format.keys().effectiveBits(), 1e-6);
        assertEquals(values, format.values().effectiveBits(), 1e-6);
    }

    @ParameterizedTest
    @CsvSource({"2,1,1", "32,1,2", "64,1,2", "128,2,2", "192,3,2", "512,8,6", "1024,16,10"})
    void onePercentOfOutliersTakesHalfABit(int channels, int keys, int values) {
        assertEquals(keys, CodebookFormat.keyOutliers(channels, 0.01));
        assertEquals(values, CodebookFormat.valueOutliers(channels, 0.01));
        assertEquals(0, CodebookFormat.keyOutliers(channels, 0));
        assertEquals(0, CodebookFormat.valueOutliers(channels, 0));
    }

    @Test
    void theFirstTokenIsExact() {
        assertEquals(SinkPolicy.FIRST, options("kvquant2").exact().sinkPolicy());
        assertEquals(1, options("kvquant2").exact().maxSinks());
        assertEquals(0, options("kvquant2").window());
        CacheOptions wide = options("kvquant2", "kv_sink_tokens", "4", "kv_recent_tokens", "128");
        assertEquals(4, wide.exact().maxSinks());
        assertEquals(128, wide.window());
        assertEquals(128, options("int2/kvquant4").window());
        assertEquals(SinkPolicy.MASSIVE, options("rotatekv2/kvquant4").exact().sinkPolicy());
    }

    @ParameterizedTest
    @CsvSource({
        "kvquant2,0.01,kvquant2",
        "kvquant2/kvquant2,0.010,kvquant2",
        "kvquant2,0,kvquant2-dense",
        "kvquant3/int2,0.01,kvquant3",
        "kvquant3/kvquant2,0.01,kvquant3-kvquant2",
        "int2/kvquant4,0.02,int2-kvquant4-outliers0.02",
        "auto/kvquant4,0.01,auto-kvquant4"
    })
    void calibrationsAreNamedByWhatTheyDependOn(String dtype, String outliers, String name) {
        CacheOptions options = options(dtype, "kv_outliers", outliers);
        assertTrue(options.needsCalibration());
        assertTrue(options.usesCalibration());
        assertEquals(name, options.calibrationName());
    }

    @Test
    void readsOtherLevelsOnRequest() {
        float[] levels = {-1, -0.3f, 0.3f, 1};
        float[] read = {-1.1f, -0.3f, 0.3f, 1.1f};
        Calibration calibration =
                new Calibration.Builder(Map.of())
                        .put(0, "values.levels", levels)
                        .put(0, "values.read_levels", read)
                        .build();
        CacheOptions plain = options("fp16/kvquant2").withCalibration(calibration);
        CacheOptions normalized =
                options("fp16/kvquant2", "kv_qnorm", "true").withCalibration(calibration);
        CodebookFormat format = CodebookFormat.values(2, GEOMETRY, plain, 0);
        assertArrayEquals(levels, format.levels());
        assertArrayEquals(levels, format.readLevels());
        format = CodebookFormat.values(2, GEOMETRY, normalized, 0);
        assertArrayEquals(levels, format.levels());
        assertArrayEquals(read, format.readLevels());
        assertFalse(format.isPreRope());
    }

    @Test
    void aCalibrationOfOtherSizesIsRefused() {
        Calibration calibration =
                new Calibration.Builder(Map.of()).put(0, "values.levels", new float[8]).build();
        CacheOptions options = options("fp16/kvquant2").withCalibration(calibration);
        IllegalArgumentException e =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> CodebookFormat.values(2, GEOMETRY, options, 0));
        assertEquals(
                "The calibration's values.levels of layer 0 has 8 elements, but kv_cache_dtype"
                        + " fp16/kvquant2 needs 4. Calibrate again.",
                e.getMessage());
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "kvquant2  | kv_outliers | 0.3   | kv_outliers is '0.3'; allowed: the share of",
                "kvquant2  | kv_outliers | -1    | kv_outliers is '-1'; allowed: the share of",
                "kvquant2  | kv_outliers | NaN   | kv_outliers is 'NaN'; allowed: the share of",
                "kvquant2  | kv_outliers | 1%    | kv_outliers is '1%'; allowed: the share of",
                "rotatekv2 | kv_outliers | 0.01  | kv_outliers has an effect only when keys or values",
                "rotatekv2 | kv_qnorm    | false | kv_qnorm has an effect only when keys or values",
                "kvquant2  | kv_qnorm    | yes   | kv_qnorm is 'yes'; allowed: true, false.",
                "kvquant3  | kv_qnorm    | true  | kv_qnorm is true, which kv_cache_dtype kvquant3 does",
                "kvquant2/kvquant3 | kv_qnorm | true | kv_qnorm is true, which kv_cache_dtype",
                "kvquant2  | kv_sink_tokens | massive | kv_sink_tokens is massive, which"
            })
    void badValuesAreRefused(String dtype, String name, String value, String message) {
        IllegalArgumentException e =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> options(dtype, name, value).exact().sinkPolicy());
        assertTrue(e.getMessage().startsWith(message), e::getMessage);
    }
}
