/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.MalformedModelException;
import ai.djl.engine.EngineException;
import java.io.IOException;
import java.nio.file.NoSuchFileException;

/** Errors as one line of text. */
final class Errors {

    private Errors() {}

    static String describe(Throwable e) {
        if (e instanceof NoSuchFileException) {
            return "There is no file " + oneLine(e.getMessage()) + ".";
        }
        boolean speaksForItself =
                e instanceof IllegalArgumentException
                        || e instanceof IllegalStateException
                        || e instanceof MalformedModelException
                        || e instanceof EngineException
                        || e instanceof IOException
                        || e.getClass().getName().startsWith("ai.djl.kvquant.");
        if (speaksForItself && e.getMessage() != null) {
            return oneLine(e.getMessage());
        }
        String text = e.getMessage() == null ? "" : ": " + oneLine(e.getMessage());
        return e.getClass().getName() + text + ". Run it again with --verbose for its origin.";
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
