/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.ModelException;
import ai.djl.engine.EngineException;
import java.io.IOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileSystemException;
import java.nio.file.NoSuchFileException;
import java.nio.file.NotDirectoryException;

/** Errors as one line of text. */
final class Errors {

    private Errors() {}

    static String describe(Throwable e) {
        if (e instanceof FileSystemException failed && failed.getFile() != null) {
            return describe(failed);
        }
        if (speaksForItself(e)) {
            return oneLine(e.getMessage());
        }
        String text = e.getMessage() == null ? "" : ": " + oneLine(e.getMessage());
        return e.getClass().getName() + text + ". Run it again with --verbose for its origin.";
    }

    /** Whether its message is meant for users. */
    static boolean speaksForItself(Throwable e) {
        boolean meant =
                e instanceof IllegalArgumentException
                        || e instanceof IllegalStateException
                        || e instanceof ModelException
                        || e instanceof EngineException
                        || e instanceof IOException
                        || e.getClass().getName().startsWith("ai.djl.kvquant.");
        return meant && e.getMessage() != null;
    }

    /** Java names the file and often nothing else. */
    private static String describe(FileSystemException e) {
        String file = oneLine(e.getFile());
        if (e.getReason() != null) {
            return oneLine(e.getMessage());
        }
        if (e instanceof NoSuchFileException) {
            return "There is no file " + file + ".";
        }
        if (e instanceof AccessDeniedException) {
            return file
                    + " can not be read or written: permission denied; change its permissions or"
                    + " choose another.";
        }
        if (e instanceof FileAlreadyExistsException || e instanceof NotDirectoryException) {
            return file + " is not a directory; choose another.";
        }
        return file + " can not be read or written (" + e.getClass().getSimpleName() + ").";
    }

    /** The first line that says something; libtorch's errors go on with a stack trace. */
    static String oneLine(String message) {
        return message.lines()
                .map(String::strip)
                .filter(line -> !line.isEmpty())
                .findFirst()
                .orElse("");
    }
}
