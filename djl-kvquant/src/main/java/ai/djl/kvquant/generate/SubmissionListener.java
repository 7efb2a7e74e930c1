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
     * Receives the error that ended the request; nothing follows.
     *
     * @param error what a call that waits would have thrown
     */
    void onError(Throwable error);
}
