/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** A tokenizer that cuts prompts, as DJL's do by default, is refused. */
class TruncationTest {

    private static void assertRefused(Executable constructor) {
        assertEquals(
                "The tokenizer cuts texts at 512 tokens, so that the model would see the beginning of"
                        + " a prompt only; create it with Tokenizers.load(DIRECTORY) or with"
                        + " optTruncation(false).",
                assertThrows(IllegalArgumentException.class, constructor).getMessage());
    }

    @Test
    void aTokenizerThatCutsTextsIsRefused() {
        FakeModel model = FakeModel.saying(300, 1, new int[] {0});
        try (HuggingFaceTokenizer cutting = Tokenizers.byteLevel(Map.of());
                BatchScheduler scheduler = new BatchScheduler(model, BatchLimits.DEFAULT)) {
            assertRefused(() -> new Generator(model, cutting));
            assertRefused(() -> new Generator(scheduler, cutting));
        }
    }
}
