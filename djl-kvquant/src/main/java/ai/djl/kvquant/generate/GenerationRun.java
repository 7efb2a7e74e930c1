/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.util.List;

/** The generation of one call, advanced by the thread that calls. */
interface GenerationRun extends AutoCloseable {

    /**
     * Goes on until there is a new token, or the end of a sequence, and reports it.
     *
     * @return whether any sequence goes on
     */
    boolean advance();

    /** Returns the results in the order of the prompts, once none goes on. */
    List<GenerationResult> results();

    /** Ends what still goes on and releases its KV cache. */
    @Override
    void close();
}
