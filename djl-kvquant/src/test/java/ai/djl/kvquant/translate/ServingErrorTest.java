/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.djl.kvquant.cache.CacheFullException;
import ai.djl.kvquant.generate.ModelClosedException;
import ai.djl.kvquant.generate.TooManyRequestsException;
import ai.djl.kvquant.generate.WaitTooLongException;
import org.junit.jupiter.api.Test;

/** The HTTP status of what may go wrong. */
class ServingErrorTest {

    private static int status(Throwable error) {
        return ServingError.logged(error).code();
    }

    @Test
    void tellsWhatMayPassFromWhatIsBroken() {
        assertEquals(413, status(new CacheFullException("full")));
        assertEquals(413, status(new CacheFullException("full", false)));
        assertEquals(503, status(new CacheFullException("full for now", true)));
        assertEquals(429, status(new TooManyRequestsException("many")));
        assertEquals(503, status(new WaitTooLongException("long")));
        assertEquals(503, status(new ModelClosedException("closed")));
        // Trying again helps nobody.
        assertEquals(500, status(new IllegalStateException("a defect")));
        assertEquals(500, status(new AssertionError("a defect")));
    }
}
