/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.kvquant.cache.CacheFullException;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.ModelClosedException;
import ai.djl.kvquant.generate.TooManyRequestsException;
import ai.djl.kvquant.generate.WaitTooLongException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Why a request has no response, or only a part of it.
 *
 * @param code the HTTP status
 * @param message what was asked, what is allowed and what to do
 */
record ServingError(int code, String message) {

    static final int BAD_REQUEST = 400;
    static final int TOO_LARGE = 413;
    static final int TOO_MANY = 429;
    static final int CLIENT_GONE = 499;
    static final int INTERNAL = 500;
    static final int UNAVAILABLE = 503;

    private static final Logger logger = LoggerFactory.getLogger(ServingError.class);
    private static final int LONGEST_REASON = 256;

    /** An error in what was sent. */
    static ServingError badRequest(RuntimeException error) {
        return new ServingError(BAD_REQUEST, textOf(error));
    }

    /** An error in answering it, told to whoever runs the server unless it is the client's. */
    static ServingError logged(Throwable cause) {
        ServingError error = of(cause);
        if (error.code == INTERNAL) {
            logger.error("A request failed", cause);
        } else if (error.code == UNAVAILABLE) {
            logger.warn("A request was not served: {}", error.message);
        }
        return error;
    }

    private static ServingError of(Throwable error) {
        int code = INTERNAL;
        if (error instanceof CacheFullException full) {
            code = full.fitsAlone() ? UNAVAILABLE : TOO_LARGE;
        } else if (error instanceof TooManyRequestsException) {
            code = TOO_MANY;
        } else if (error instanceof WaitTooLongException || error instanceof ModelClosedException) {
            code = UNAVAILABLE;
        }
        return new ServingError(code, textOf(error));
    }

    /** What a sequence that had no more room is told. */
    static ServingError cacheFull(GenerationResult result) {
        return new ServingError(result.retryable() ? UNAVAILABLE : TOO_LARGE, result.message());
    }

    private static String textOf(Throwable error) {
        return error.getMessage() == null ? error.toString() : error.getMessage();
    }

    /** The message as the reason phrase of an HTTP response: one line of ASCII, not too long. */
    String reason() {
        String line = message.replaceAll("[^\\x20-\\x7e]+", " ").strip();
        return line.length() <= LONGEST_REASON
                ? line
                : line.substring(0, LONGEST_REASON - 3) + "...";
    }

    /** The name that OpenAI's schema has for it. */
    String type() {
        return switch (code) {
            case BAD_REQUEST, TOO_LARGE -> "invalid_request_error";
            case TOO_MANY -> "rate_limit_error";
            case UNAVAILABLE -> "service_unavailable";
            default -> "server_error";
        };
    }
}
