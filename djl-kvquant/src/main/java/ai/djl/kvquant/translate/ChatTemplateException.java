/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

/** Thrown when a chat template cannot be rendered with the given messages. */
public class ChatTemplateException extends RuntimeException {

    private static final long serialVersionUID = 1L;

    /**
     * Creates an exception.
     *
     * @param message what is wrong, in one sentence
     */
    public ChatTemplateException(String message) {
        super(message);
    }
}
