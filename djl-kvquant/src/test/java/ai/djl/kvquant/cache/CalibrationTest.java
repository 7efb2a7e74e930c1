/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ReadOnlyBufferException;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

class CalibrationTest {

    private static final float[] MEAN = {1, 2, 3, 4};

    private final Calibration.Builder builder =
            new Calibration.Builder(Map.of("kv_cache_dtype", "int2"))
                    .put(10, "key_mean", MEAN, 2, 2)
                    .put(2, "key_step", new float[] {5})
                    .put(2, "key_mean", new float[0]);

    @Test
    void returnsWhatWasPut() {
        Calibration calibration = builder.build();
        assertArrayEquals(MEAN, calibration.get(10, "key_mean"));
        assertArrayEquals(new long[] {2, 2}, calibration.shape(10, "key_mean"));
        assertArrayEquals(new long[] {1}, calibration.shape(2, "key_step"));
        assertTrue(calibration.has(2, "key_step"));
        assertFalse(calibration.has(10, "key_step"));
        assertFalse(calibration.has(3, "key_mean"));
        assertEquals(
                List.of("2 key_mean", "2 key_step", "10 key_mean"),
                calibration.arrays().stream().map(a -> a.layer() + " " + a.name()).toList());
    }

    @Test
    void doesNotChange() {
        Map<String, String> metadata = new HashMap<>(Map.of("a", "b"));
        float[] values = {1};
        Calibration.Builder open = new Calibration.Builder(metadata).put(0, "x", values);
        Calibration calibration = open.build();
        metadata.put("a", "c");
        values[0] = 2;
        calibration.get(0, "x")[0] = 2;
        calibration.shape(0, "x")[0] = 2;
        calibration.arrays().get(0).shape()[0] = 2;
        open.put(0, "y", values).put(1, "x", values);
        assertEquals(Map.of("a", "b"), calibration.metadata());
        assertArrayEquals(new float[] {1}, calibration.get(0, "x"));
        assertArrayEquals(new long[] {1}, calibration.shape(0, "x"));
        assertEquals(1, calibration.arrays().size());
        assertThrows(
                ReadOnlyBufferException.class,
                () -> calibration.arrays().get(0).values().put(0, 2));
        assertThrows(
                UnsupportedOperationException.class, () -> calibration.metadata().put("a", "c"));
    }

    @Test
    void saysWhatIsMissing() {
        Calibration calibration = builder.build();
        IllegalStateException array =
                assertThrows(IllegalStateException.class, () -> calibration.get(2, "key_width"));
        assertEquals(
                "The calibration has no key_width for layer 2, only key_mean, key_step. Calibrate"
                        + " again for kv_cache_dtype int2.",
                array.getMessage());
        IllegalStateException layer =
                assertThrows(IllegalStateException.class, () -> calibration.get(3, "key_mean"));
        assertEquals(
                "The calibration has no key_mean for layer 3; it has nothing for this layer."
                        + " Calibrate again for kv_cache_dtype int2.",
                layer.getMessage());
    }

    @Test
    void refusesWhatIsNoArrayOfALayer() {
        assertMessage("Layer 2 has an array key_mean already.", 2, "key_mean", 0);
        assertMessage("Array x has 0 elements, which do not make the shape [3].", 0, "x", 3);
        assertMessage("do not make the shape [-1, 0].", 0, "x", -1, 0);
        assertMessage("letters, digits, underscores, dots and hyphens.", 0, "a b", 0);
        assertMessage("letters, digits, underscores, dots and hyphens.", 0, "", 0);
        assertMessage("letters, digits, underscores, dots and hyphens.", -1, "x", 0);
    }

    private void assertMessage(String message, int layer, String name, long... shape) {
        IllegalArgumentException error =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> builder.put(layer, name, new float[0], shape));
        assertTrue(error.getMessage().endsWith(message), error.getMessage());
    }
}
