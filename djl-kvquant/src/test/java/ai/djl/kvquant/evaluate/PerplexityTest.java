/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.evaluate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Which parts of a text are evaluated. */
class PerplexityTest {

    private static final int CONTEXT = 8;

    /** Each token is its own position. */
    private static int[] text(int tokens) {
        return IntStream.range(0, tokens).toArray();
    }

    private static List<Integer> starts(int tokens, int count) {
        return Perplexity.windows(text(tokens), CONTEXT, count).stream().map(w -> w[0]).toList();
    }

    @Test
    void windowsAreSpreadEvenly() {
        // 10 windows of 8 tokens and a rest of 7: floor(10 i / 4) is 0, 2, 5, 7.
        assertEquals(List.of(0, 16, 40, 56), starts(87, 4));
    }

    @Test
    void allWindowsCoverTheTextInOrder() {
        assertEquals(List.of(0, 8, 16), starts(24, 3));
    }

    @Test
    void windowsHaveTheContextsLength() {
        for (int[] window : Perplexity.windows(text(87), CONTEXT, 7)) {
            assertEquals(CONTEXT, window.length);
            assertEquals(window[0] + CONTEXT - 1, window[CONTEXT - 1]);
        }
    }

    @ParameterizedTest
    @CsvSource({
        "87, 11, 'The text has 87 tokens, that is 10 windows of 8; 11 were asked for. Give 1 to 10"
                + " windows, or a smaller context.'",
        "87, 0, 'The text has 87 tokens, that is 10 windows of 8; 0 were asked for. Give 1 to 10"
                + " windows, or a smaller context.'",
        "7, 1, 'The text has 7 tokens, that is 0 windows of 8; 1 were asked for. Give a longer text"
                + " or a smaller context.'"
    })
    void impossibleCountsSayWhatIsPossible(int tokens, int count, String message) {
        IllegalArgumentException e =
                assertThrows(IllegalArgumentException.class, () -> starts(tokens, count));
        assertEquals(message, e.getMessage());
    }

    @Test
    void aContextOfOneTokenPredictsNothing() {
        IllegalArgumentException e =
                assertThrows(
                        IllegalArgumentException.class, () -> Perplexity.windows(text(10), 1, 1));
        assertEquals("A context of 1 tokens predicts nothing; give 2 or more.", e.getMessage());
    }
}
