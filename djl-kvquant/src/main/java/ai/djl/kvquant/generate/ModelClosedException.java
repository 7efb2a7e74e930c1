/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

/** Thrown when a model is asked that is closed, or that was closed while it worked. */
public class ModelClosedException extends IllegalStateException {

    private static final long serialVersionUID = 1L;

    /**
     * Creates an exception.
     *
     * @param message what was asked, what is allowed and what to do
     */
    public ModelClosedException(String message) {
        super(message);
    }
}
