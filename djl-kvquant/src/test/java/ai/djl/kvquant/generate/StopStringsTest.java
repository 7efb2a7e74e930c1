/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;

class StopStringsTest {

    /** Whatever the pieces are, the result is that of reading character by character. */
    @Test
    void doesNotDependOnThePieces() {
        Random random = new Random(5);
        for (int i = 0; i < 5000; i++) {
            List<String> stops =
                    List.of(word(random, 1, 4), word(random, 1, 5), word(random, 2, 3));
            String text = word(random, 0, 14);
            String expected = text;
            boolean stopped = false;
            for (int end = 1; end <= text.length() && !stopped; end++) {
                String read = text.substring(0, end);
                int longest =
                        stops.stream()
                                .filter(read::endsWith)
                                .mapToInt(String::length)
                                .max()
                                .orElse(0);
                if (longest > 0) {
                    expected = read.substring(0, end - longest);
                    stopped = true;
                }
            }
            StopStrings finder = new StopStrings(stops);
            StringBuilder actual = new StringBuilder();
            for (int at = 0; at < text.length(); ) {
                int end = Math.min(text.length(), at + 1 + random.nextInt(5));
                actual.append(finder.add(text.substring(at, end)));
                assertTrue(expected.startsWith(actual.toString()), "streamed too early");
                at = end;
            }
            actual.append(finder.flush());
            assertEquals(expected, actual.toString(), () -> text + " with " + stops);
            assertEquals(stopped, finder.found());
        }
    }

    @Test
    void holdsBackNoMoreThanNeeded() {
        StopStrings finder = new StopStrings(List.of("\n\nUser:"));
        assertEquals("Hi", finder.add("Hi\n"));
        assertEquals("\n", finder.add("\n\n"));
        assertEquals("\n\nUs", finder.add("Us") + finder.add("x").substring(0, 4));
        assertEquals("", finder.flush());
    }

    private static String word(Random random, int least, int most) {
        StringBuilder word = new StringBuilder();
        for (int n = least + random.nextInt(most - least + 1); n > 0; n--) {
            word.append("ab".charAt(random.nextInt(2)));
        }
        return word.toString();
    }
}
