/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.kvquant.generate.GeneratedToken;
import ai.djl.kvquant.generate.GenerationResult;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** A response of the LMI schema in one piece: {@code {"generated_text": ..., "details": ...}}. */
final class LmiJson implements ResponseFormat {

    private final LmiRequest request;
    private final List<List<Map<String, Object>>> tokens = new ArrayList<>();

    LmiJson(LmiRequest request) {
        this.request = request;
        request.inputs().forEach(input -> tokens.add(new ArrayList<>()));
    }

    @Override
    public String contentType() {
        return "application/json";
    }

    @Override
    public String token(GeneratedToken token) {
        if (request.details()) {
            tokens.get(token.sequence()).add(LmiTokens.token(token));
        }
        return "";
    }

    @Override
    public String end(List<GenerationResult> results, String remainder, ServingError error) {
        List<Map<String, Object>> texts = new ArrayList<>();
        for (int i = 0; i < results.size(); i++) {
            texts.add(json(i, results.get(i)));
        }
        if (error != null) {
            // What was generated is not lost.
            texts.forEach(text -> text.put("error", error.message()));
            texts.forEach(text -> text.put("code", error.code()));
        }
        return JsonText.of(request.list() ? texts : texts.get(0));
    }

    private Map<String, Object> json(int index, GenerationResult result) {
        String input = request.inputs().get(index);
        Map<String, Object> json =
                JsonText.map("generated_text", (request.fullText() ? input : "") + result.text());
        if (request.details()) {
            json.put(
                    "details",
                    JsonText.map(
                            "finish_reason",
                            LmiTokens.reason(result.finishReason()),
                            "generated_tokens",
                            result.tokens().length,
                            "inputs",
                            input,
                            "tokens",
                            tokens.get(index)));
        }
        return json;
    }

    @Override
    public String fail(ServingError error) {
        return LmiRequest.errorBody(error);
    }
}
