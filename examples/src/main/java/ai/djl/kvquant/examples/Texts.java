/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Files;
import java.nio.file.Path;

/** Texts that a user names. */
final class Texts {

    private Texts() {}

    /**
     * Reads a text.
     *
     * @param option the option that names the file, for errors
     */
    static String read(Path file, String option) throws IOException {
        if (Files.isDirectory(file)) {
            throw new IllegalArgumentException(
                    option + " " + file + " is a directory; name a text file.");
        }
        try {
            return Files.readString(file);
        } catch (CharacterCodingException e) {
            throw new IOException(
                    option + " " + file + " is not UTF-8; convert it, for example with iconv.", e);
        }
    }
}
