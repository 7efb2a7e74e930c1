/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/** The default model of the examples, fetched when a test first asks for it. */
public final class DefaultModel {

    private DefaultModel() {}

    /**
     * Returns the HuggingFace directory of SmolLM2-135M-Instruct.
     *
     * @return a directory that holds config.json, model.safetensors and the tokenizer
     */
    public static Path directory() {
        return Holder.DIRECTORY;
    }

    /**
     * Returns the root of the source tree.
     *
     * @return the directory that holds the examples
     */
    public static Path repositoryRoot() {
        Path start = Path.of("").toAbsolutePath();
        for (Path path = start; path != null; path = path.getParent()) {
            if (Files.isRegularFile(path.resolve("examples/fetch-model"))) {
                return path;
            }
        }
        throw new IllegalStateException(
                "no examples/fetch-model above " + start + "; run tests inside the source tree");
    }

    private static Path fetch() {
        String script = repositoryRoot().resolve("examples/fetch-model").toString();
        ProcessBuilder builder = new ProcessBuilder(script);
        builder.redirectError(ProcessBuilder.Redirect.INHERIT);
        try {
            Process process = builder.start();
            String output;
            try (InputStream stdout = process.getInputStream()) {
                output = new String(stdout.readAllBytes(), StandardCharsets.UTF_8).strip();
            }
            int exit = process.waitFor();
            if (exit != 0) {
                throw new IllegalStateException(
                        script + " failed with exit code " + exit + "; its message is on stderr");
            }
            return Path.of(output);
        } catch (IOException e) {
            throw new UncheckedIOException("cannot run " + script, e);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException("interrupted while fetching the default model", e);
        }
    }

    /** Fetches once per JVM, on first use. */
    private static final class Holder {
        static final Path DIRECTORY = fetch();
    }
}
