/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.kvquant.generate.FinishReason;
import ai.djl.kvquant.generate.GeneratedToken;
import ai.djl.kvquant.generate.GenerationResult;
import java.util.List;
import java.util.Map;

/** A response of the chat schema as events: {@code chat.completion.chunk}, then {@code [DONE]}. */
final class ChatEvents implements ResponseFormat {

    private static final String TYPE = "chat.completion.chunk";
    private static final String DONE = "[DONE]";

    private final ChatParts parts;
    private final boolean usage;
    private final EventText events = new EventText();
    private boolean begun;
    private boolean finished;

    ChatEvents(ChatParts parts, boolean usage) {
        this.parts = parts;
        this.usage = usage;
    }

    @Override
    public String contentType() {
        return LmiLines.EVENTS;
    }

    /** A token that has no text of its own, as within a character, waits for the next. */
    @Override
    public String token(GeneratedToken token) {
        Map<String, Object> logProb = parts.logProb(token);
        FinishReason reason = token.finishReason();
        finished |= reason != null;
        if (begun && reason == null && token.text().isEmpty() && logProb == null) {
            return "";
        }
        List<Map<String, Object>> entries = logProb == null ? List.of() : List.of(logProb);
        return chunk(token.text(), parts.logProbs(entries), reason);
    }

    private String chunk(String text, Map<String, Object> logProbs, FinishReason reason) {
        Map<String, Object> delta = JsonText.map();
        if (!begun) {
            delta.put("role", "assistant");
        }
        begun = true;
        delta.put("content", text);
        Map<String, Object> choice =
                JsonText.map(
                        "index",
                        0,
                        "delta",
                        delta,
                        "logprobs",
                        logProbs,
                        "finish_reason",
                        reason == null ? null : ChatParts.reason(reason));
        Map<String, Object> chunk = parts.response(TYPE, List.of(choice));
        if (usage) {
            chunk.put("usage", null);
        }
        return event(chunk);
    }

    @Override
    public String end(List<GenerationResult> results, String remainder, ServingError error) {
        GenerationResult result = results.get(0);
        StringBuilder text = new StringBuilder();
        if (error != null) {
            text.append(chunk(remainder, null, result.finishReason()));
            text.append(event(ChatParts.error(error)));
        } else if (usage) {
            Map<String, Object> last = parts.response(TYPE, List.of());
            last.put("usage", ChatParts.usage(result));
            text.append(event(last));
        }
        return text.append(events.event(DONE)).toString();
    }

    @Override
    public String fail(ServingError error) {
        return event(ChatParts.error(error)) + events.event(DONE);
    }

    private String event(Map<String, Object> json) {
        return events.event(JsonText.of(json));
    }

    /** Not behind the last token: white space before {@code [DONE]} would hide it. */
    @Override
    public String keepAlive() {
        return finished ? "" : events.keepAlive();
    }
}
