/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.kvquant.generate.FinishReason;
import ai.djl.kvquant.generate.GeneratedToken;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.TokenLogProb;
import java.util.List;
import java.util.Map;

/** The parts that all responses of the chat schema have. */
final class ChatParts {

    private final String id;
    private final String model;
    private final boolean logProbs;
    private final TokenTexts texts;
    private final long created = System.currentTimeMillis() / 1000;

    ChatParts(String id, String model, boolean logProbs, TokenTexts texts) {
        this.id = id;
        this.model = model;
        this.logProbs = logProbs;
        this.texts = texts;
    }

    Map<String, Object> response(String type, List<?> choices) {
        return JsonText.map(
                "id",
                "chatcmpl-" + id,
                "object",
                type,
                "created",
                created,
                "model",
                model,
                "choices",
                choices);
    }

    /** A token's entry in the log-probabilities; null if they were not asked for. */
    Map<String, Object> logProb(GeneratedToken token) {
        if (!logProbs) {
            return null;
        }
        Map<String, Object> json = logProb(token.id(), token.logProb());
        json.put(
                "top_logprobs",
                token.alternatives().stream()
                        .map((TokenLogProb each) -> logProb(each.token(), each.logProb()))
                        .toList());
        return json;
    }

    private Map<String, Object> logProb(int token, float logProb) {
        String text = texts.text(token);
        return JsonText.map(
                "token",
                text,
                "logprob",
                LmiTokens.finite(logProb),
                "bytes",
                TokenTexts.bytes(text));
    }

    /** The log-probabilities of some tokens; null if they were not asked for. */
    Map<String, Object> logProbs(List<Map<String, Object>> entries) {
        return logProbs ? JsonText.map("content", entries) : null;
    }

    static String reason(FinishReason reason) {
        return switch (reason) {
            case EOS, STOP -> "stop";
            case LENGTH, CONTEXT_FULL, CACHE_FULL, CANCELLED -> "length";
        };
    }

    static Map<String, Object> usage(GenerationResult result) {
        int generated = result.tokens().length;
        return JsonText.map(
                "prompt_tokens",
                result.promptTokens(),
                "completion_tokens",
                generated,
                "total_tokens",
                result.promptTokens() + generated);
    }

    static Map<String, Object> error(ServingError error) {
        return JsonText.map(
                "error",
                JsonText.map(
                        "message",
                        error.message(),
                        "type",
                        error.type(),
                        "param",
                        null,
                        "code",
                        error.code()));
    }
}
