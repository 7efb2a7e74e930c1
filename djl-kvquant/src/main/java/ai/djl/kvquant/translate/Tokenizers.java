/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * Loads the tokenizer of a HuggingFace directory as language models need it: whole texts, nothing
 * cut or padded.
 */
public final class Tokenizers {

    private Tokenizers() {}

    /**
     * Loads tokenizer.json.
     *
     * @param directory the model directory
     * @return the tokenizer; the caller closes it
     * @throws IOException if there is none or it can not be read
     */
    public static HuggingFaceTokenizer load(Path directory) throws IOException {
        Path file = directory.resolve("tokenizer.json");
        if (!Files.isRegularFile(file)) {
            throw new FileNotFoundException(
                    directory
                            + " has no tokenizer.json. Save one with transformers:"
                            + " AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).");
        }
        try {
            return HuggingFaceTokenizer.builder()
                    .optTokenizerPath(directory)
                    .optTruncation(false)
                    .optPadding(false)
                    .build();
        } catch (RuntimeException e) {
            throw new IOException(
                    file + " is not a tokenizer (" + e.getMessage() + "); download it again.", e);
        }
    }
}
