/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

/**
 * Receives what becomes of a request that no thread waits for.
 *
 * <p>All calls come from one thread, which the listeners of all requests of a scheduler share: they
 * must not wait. Each sequence ends with {@link #onFinish}; an error ends all sequences of a
 * request with one {@link #onError}.
 */
public interface SubmissionListener extends GenerationListener {

    /**
     * Called about once a second until the request ends, whether or not there are tokens: while it
     * waits for its turn, its pages are taken by others, or a long prompt is computed.
     */
    default void onPulse() {}

    /**
     * Receives the error that ended the request; nothing follows.
     *
     * @param error what a call that waits would have thrown
     */
    void onError(Throwable error);
}
