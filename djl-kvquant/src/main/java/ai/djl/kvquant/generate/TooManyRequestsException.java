/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

/** Thrown when as many requests wait for a model as its {@link BatchLimits} allow. */
public class TooManyRequestsException extends RuntimeException {

    private static final long serialVersionUID = 1L;

    /**
     * Creates an exception.
     *
     * @param message what was asked, what is allowed and what to do
     */
    public TooManyRequestsException(String message) {
        super(message);
    }
}
