/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.kvquant.generate.FinishReason;
import ai.djl.kvquant.generate.GeneratedToken;
import java.util.Map;

/** The parts that all responses of the LMI schema have. */
final class LmiTokens {

    /** Below what a response can tell. */
    private static final float LEAST = -9999;

    private LmiTokens() {}

    static Map<String, Object> token(GeneratedToken token) {
        Map<String, Object> json =
                JsonText.map(
                        "id",
                        token.id(),
                        "text",
                        token.text(),
                        "log_prob",
                        finite(token.logProb()));
        if (token.finishReason() == FinishReason.EOS) {
            json.put("special_token", true);
        }
        return json;
    }

    static float finite(float logProb) {
        return Math.max(LEAST, logProb);
    }

    static String reason(FinishReason reason) {
        return switch (reason) {
            case EOS -> "eos_token";
            case STOP -> "stop_sequence";
            case LENGTH, CONTEXT_FULL -> "length";
            case CACHE_FULL, CANCELLED -> "error";
        };
    }
}
