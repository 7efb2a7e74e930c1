/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

/** Tells that a request had no token within the time that it was to wait. */
public class WaitTooLongException extends RuntimeException {

    private static final long serialVersionUID = 1L;

    /**
     * Creates an exception.
     *
     * @param message what was asked, what is allowed and what to do
     */
    public WaitTooLongException(String message) {
        super(message);
    }
}
