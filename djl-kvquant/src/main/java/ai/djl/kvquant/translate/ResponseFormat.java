/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.kvquant.generate.GeneratedToken;
import ai.djl.kvquant.generate.GenerationResult;
import java.util.List;

/** Writes one response, as its tokens come. Used by one thread. */
interface ResponseFormat {

    /** The media type of a response without an error before it begins. */
    String contentType();

    /** A token has come; returns what to send now, or an empty text. */
    String token(GeneratedToken token);

    /**
     * All sequences have ended; returns the rest of the response.
     *
     * @param results one for each prompt
     * @param remainder text of the first prompt's sequence that no token carried
     * @param error why it is not complete, or null
     */
    String end(List<GenerationResult> results, String remainder, ServingError error);

    /** An error ended the response after it had begun; returns its last event. */
    String fail(ServingError error);

    /**
     * Nothing has been sent for a while; returns what may be sent in between without a change of
     * what clients read: white space before the next JSON value, which JSON allows anywhere.
     */
    default String keepAlive() {
        return " ";
    }
}
