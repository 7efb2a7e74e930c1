/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.kvquant.generate.GeneratedToken;
import ai.djl.kvquant.generate.GenerationResult;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** A response of the chat schema in one piece: {@code chat.completion}. */
final class ChatJson implements ResponseFormat {

    private final ChatParts parts;
    private final List<Map<String, Object>> logProbs = new ArrayList<>();

    ChatJson(ChatParts parts) {
        this.parts = parts;
    }

    @Override
    public String contentType() {
        return "application/json";
    }

    @Override
    public String token(GeneratedToken token) {
        logProbs.add(parts.logProb(token));
        return "";
    }

    @Override
    public String end(List<GenerationResult> results, String remainder, ServingError error) {
        GenerationResult result = results.get(0);
        Map<String, Object> choice =
                JsonText.map(
                        "index",
                        0,
                        "message",
                        JsonText.map("role", "assistant", "content", result.text()),
                        "logprobs",
                        parts.logProbs(logProbs),
                        "finish_reason",
                        ChatParts.reason(result.finishReason()));
        Map<String, Object> response = parts.response("chat.completion", List.of(choice));
        response.put("usage", ChatParts.usage(result));
        if (error != null) {
            // What was generated is not lost.
            response.putAll(ChatParts.error(error));
        }
        return JsonText.of(response);
    }

    @Override
    public String fail(ServingError error) {
        return ChatRequest.errorBody(error);
    }
}
