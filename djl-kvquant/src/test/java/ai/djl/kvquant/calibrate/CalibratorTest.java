/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class CalibratorTest {

    /** Tokens that tell their position. */
    private static int[] text(int length) {
        return IntStream.range(0, length).toArray();
    }

    @ParameterizedTest
    @CsvSource({
        // text, limit, longest; windows, their length
        "64, 100000, 4096, 1, 64",
        "3000, 2048, 4096, 1, 2048",
        "3000, 2048, 512, 4, 512",
        "2048, 2048, 2048, 1, 2048",
        "2049, 100000, 4096, 2, 1024",
        "6144, 100000, 4096, 3, 2048",
        "100000, 10000, 4096, 5, 2000",
        "100000, 10000, 1000, 10, 1000",
        "100000, 64, 4096, 1, 64"
    })
    void windowsAreEqualAndSpreadEvenly(int tokens, int limit, int longest, int count, int length) {
        List<int[]> windows = Calibrator.windows(text(tokens), limit, longest);
        assertEquals(count, windows.size());
        double distance = (double) tokens / count;
        for (int i = 0; i < count; ++i) {
            int[] window = windows.get(i);
            assertEquals(length, window.length);
            for (int j = 1; j < length; ++j) {
                assertEquals(window[0] + j, window[j], "a window is a piece of the text");
            }
            if (i > 0) {
                assertTrue(window[0] >= windows.get(i - 1)[0] + length, "windows overlap");
            }
            // Windows begin at multiples of their length, before a rest shorter than one.
            assertEquals(0, window[0] % length);
            assertEquals(i * distance, window[0], 2 * length, "window " + i);
        }
    }

    @ParameterizedTest
    @ValueSource(ints = {100, 513, 2047, 2048, 2050, 5000, 99_999})
    void noMoreThanTheLimitIsUsedAndMostOfIt(int limit) {
        for (int longest : new int[] {64, 333, 512, 2048, 131_072}) {
            List<int[]> windows = Calibrator.windows(text(100_000), limit, longest);
            int used = windows.stream().mapToInt(window -> window.length).sum();
            assertTrue(used <= limit, used + " of " + limit);
            assertTrue(used > 0.75 * limit, used + " of " + limit + ", windows of " + longest);
            assertTrue(windows.stream().allMatch(window -> window.length <= longest));
        }
    }

    @Test
    void shortTextsTellNothing() {
        for (int tokens : new int[] {0, 1, 63}) {
            Exception e =
                    assertThrows(
                            IllegalArgumentException.class,
                            () -> Calibrator.windows(text(tokens), 2048, 512));
            assertTrue(e.getMessage().contains(tokens + " tokens"), e.getMessage());
            assertTrue(e.getMessage().contains("64 or more"), e.getMessage());
        }
        assertThrows(IllegalArgumentException.class, () -> Calibrator.windows(text(5000), 63, 512));
    }
}
