/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.kvquant.generate.GeneratedToken;
import ai.djl.kvquant.generate.GenerationResult;
import java.util.List;
import java.util.Map;

/** A response of the LMI schema that is sent token by token, as JSON lines or events. */
final class LmiLines implements ResponseFormat {

    static final String EVENTS = "text/event-stream";

    private final LmiRequest request;
    private final boolean events;
    private final EventText eventText = new EventText();
    private final StringBuilder text = new StringBuilder();
    private int count;
    private boolean finished;

    LmiLines(LmiRequest request, boolean events) {
        this.request = request;
        this.events = events;
    }

    @Override
    public String contentType() {
        return events ? EVENTS : "application/jsonlines";
    }

    @Override
    public String token(GeneratedToken token) {
        text.append(token.text());
        ++count;
        Map<String, Object> line = JsonText.map("token", LmiTokens.token(token));
        if (token.finishReason() != null) {
            finish(line, LmiTokens.reason(token.finishReason()));
        }
        return line(line);
    }

    private void finish(Map<String, Object> line, String reason) {
        finished = true;
        String input = request.inputs().get(0);
        line.put("generated_text", (request.fullText() ? input : "") + text);
        Map<String, Object> details = JsonText.map("finish_reason", reason);
        if (request.details()) {
            details.put("generated_tokens", count);
            details.put("inputs", input);
        }
        if (request.details() || "error".equals(reason)) {
            line.put("details", details);
        }
    }

    @Override
    public String end(List<GenerationResult> results, String remainder, ServingError error) {
        text.append(remainder);
        return error == null ? "" : last(remainder, error);
    }

    @Override
    public String fail(ServingError error) {
        return last("", error);
    }

    private String last(String piece, ServingError error) {
        Map<String, Object> token =
                JsonText.map(
                        "id",
                        -1,
                        "text",
                        piece,
                        "log_prob",
                        -1,
                        "special_token",
                        true,
                        "error_msg",
                        error.message());
        Map<String, Object> line = JsonText.map("token", token);
        finish(line, "error");
        line.put("error", error.message());
        line.put("code", error.code());
        return line(line);
    }

    private String line(Map<String, Object> line) {
        String json = JsonText.of(line);
        return events ? eventText.event(json) : json + "\n";
    }

    /** Not behind the last token, which no JSON follows. */
    @Override
    public String keepAlive() {
        if (finished) {
            return "";
        }
        return events ? eventText.keepAlive() : ResponseFormat.super.keepAlive();
    }
}
