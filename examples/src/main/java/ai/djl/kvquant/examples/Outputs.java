/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.nio.file.Files;
import java.nio.file.Path;

/** Directories for results, looked at before the work, which takes minutes, and not after it. */
final class Outputs {

    private Outputs() {}

    /** Why no file can be written to a directory, which need not exist yet; null: it can be. */
    static String problem(Path directory) {
        Path existing = directory.toAbsolutePath();
        while (existing.getParent() != null && !Files.exists(existing)) {
            existing = existing.getParent();
        }
        if (!Files.isDirectory(existing)) {
            return Files.exists(directory)
                    ? "is a file; name a directory."
                    : "can not be made: " + existing + " is a file; name another directory.";
        }
        if (!Files.isWritable(existing)) {
            return "can not be written: permission denied for "
                    + existing
                    + "; change its permissions or name another directory.";
        }
        return null;
    }
}
