/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.time.Duration;

/**
 * How long a request waits for its first token.
 *
 * @param limit the longest wait, from {@code startNanos} on; null for any
 */
record MaxWait(Duration limit, long startNanos) {

    static final MaxWait NONE = new MaxWait(null, 0);

    static MaxWait of(Duration limit) {
        return new MaxWait(limit, System.nanoTime());
    }

    boolean isOver() {
        return limit != null && System.nanoTime() - startNanos > limit.toNanos();
    }

    WaitTooLongException error() {
        return new WaitTooLongException(
                "The request had no token after "
                        + limit.toSeconds()
                        + " seconds, the longest that it was to wait. Try again later, or let"
                        + " requests wait longer.");
    }
}
