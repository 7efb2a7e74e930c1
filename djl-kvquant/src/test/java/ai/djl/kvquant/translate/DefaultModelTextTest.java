/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.TextStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** The default model's own tokenizer, chat template and generation settings. */
class DefaultModelTextTest {

    private static final String CHAT =
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging"
                    + " Face<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
                    + "<|im_start|>assistant\n";

    private final Path directory = cache().resolve("djl-kvquant/SmolLM2-135M-Instruct");

    private static Path cache() {
        String home = System.getenv("XDG_CACHE_HOME");
        return home == null || home.isEmpty()
                ? Path.of(System.getProperty("user.home"), ".cache")
                : Path.of(home);
    }

    @BeforeEach
    void needsTheModel() {
        assumeTrue(
                Files.isRegularFile(directory.resolve("tokenizer.json")),
                () -> "The default model is not at " + directory + "; run examples/fetch-model.");
    }

    private HuggingFaceTokenizer tokenizer() throws IOException {
        return HuggingFaceTokenizer.newInstance(
                directory.resolve("tokenizer.json"), Map.of("truncation", "false"));
    }

    @Test
    void rendersItsChatTemplate() throws IOException {
        String text =
                ChatTemplate.fromModelDirectory(directory)
                        .render(List.of(new ChatMessage("user", "Why is the sky blue?")), true);
        assertEquals(CHAT, text);
        try (HuggingFaceTokenizer tokenizer = tokenizer()) {
            long[] ids = tokenizer.encode(text, false, false).getIds();
            assertEquals(1, ids[0], "<|im_start|> is one token");
            assertEquals(CHAT, tokenizer.decode(ids, false));
        }
    }

    @Test
    void endsAtItsEndToken() throws IOException {
        GenerationConfig config = GenerationConfig.fromModelDirectory(directory);
        assertEquals(Set.of(2), config.getEosTokenIds());
        assertFalse(config.isSampling());
    }

    @Test
    void streamsItsTextWhole() throws IOException {
        String text =
                "  The sky: \uD83C\uDF0C\uD83D\uDC69\u200D\uD83D\uDE80"
                        + " \u5929\u7A7A\u4E3A\u4EC0\u4E48\u662F\u84DD\u8272\u7684\uFF1F\n"
                        + "\tna\u00efve  12345 <|im_end|>caf\u00e9";
        try (HuggingFaceTokenizer tokenizer = tokenizer()) {
            long[] ids = tokenizer.encode(text, false, false).getIds();
            TextStream stream = new TextStream(tokenizer, true);
            StringBuilder streamed = new StringBuilder();
            for (long id : ids) {
                String piece = stream.add((int) id);
                assertFalse(piece.contains("\uFFFD"), "a broken character in '" + piece + "'");
                streamed.append(piece);
            }
            streamed.append(stream.flush());
            assertEquals(text.replace("<|im_end|>", ""), streamed.toString());
        }
    }
}
