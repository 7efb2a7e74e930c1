/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;
import org.junit.jupiter.api.Test;

class CalibrationTextTest {

    @Test
    void theTextIsOfTheSizeThatOneWindowNeeds() {
        String text = CalibrationText.builtIn();
        assertTrue(text.length() > 11_000 && text.length() < 13_500, "" + text.length());
        assertTrue(text.chars().allMatch(c -> c == '\n' || c >= ' ' && c < 127), "not ASCII");
        assertTrue(text.endsWith("\n"));
    }

    /** Repetition would make some channels look smaller than they are. */
    @Test
    void theTextDoesNotRepeatItself() {
        String[] words = CalibrationText.builtIn().toLowerCase(Locale.ROOT).split("[^a-z0-9]+");
        Map<String, Integer> runs = new HashMap<>();
        for (int i = 0; i + 5 <= words.length; i++) {
            runs.merge(String.join(" ", Arrays.copyOfRange(words, i, i + 5)), 1, Integer::sum);
        }
        runs.values().removeIf(count -> count == 1);
        assertTrue(runs.size() < 5, runs::toString);
    }

    @Test
    void hashesAreThoseOfSha256() {
        assertEquals(
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                CalibrationText.sha256("abc"));
    }
}
