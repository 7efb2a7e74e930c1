/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;

/** The model that commands use unless another is named. */
final class DefaultModel {

    /** What stands beside figures of this model. */
    static final String NOTE = "The weights are a Q4_1 file, dequantized and rounded to fp16.";

    /** Names the directory of fetch-model; set by the launcher. */
    private static final String HOME = "kvq.home";

    private DefaultModel() {}

    /** Fetches the model if it is not there; progress goes to stderr. */
    static Path fetch() throws IOException {
        String home = System.getProperty(HOME);
        if (home == null) {
            throw new IllegalArgumentException(
                    "--model is missing: only the launcher examples/kvq knows a default.");
        }
        Process process =
                new ProcessBuilder(Path.of(home, "fetch-model").toString())
                        .redirectError(ProcessBuilder.Redirect.INHERIT)
                        .start();
        try (InputStream stdout = process.getInputStream()) {
            String output = new String(stdout.readAllBytes(), StandardCharsets.UTF_8).strip();
            if (process.waitFor() != 0) {
                throw new IOException(
                        "The default model could not be fetched (see above); name another with"
                                + " --model DIR.");
            }
            return Path.of(output);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IOException("Interrupted while the default model was being fetched.", e);
        }
    }
}
