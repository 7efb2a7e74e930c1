/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

/**
 * Ends a running generation from any thread.
 *
 * <p>The generation ends before its next decoding step; what was generated is returned with {@link
 * FinishReason#CANCELLED}. A token is used for one generation, and may be shared by several that
 * shall end together.
 */
public final class Cancellation {

    private volatile boolean cancelled;

    /** Creates a token that is not cancelled. */
    public Cancellation() {}

    /** Asks the generation to end; further calls do nothing. */
    public void cancel() {
        cancelled = true;
    }

    /**
     * Returns whether {@link #cancel} was called.
     *
     * @return whether the generation was asked to end
     */
    public boolean isCancelled() {
        return cancelled;
    }
}
