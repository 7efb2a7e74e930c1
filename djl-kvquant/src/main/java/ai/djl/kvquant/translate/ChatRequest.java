/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import com.google.gson.JsonElement;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * A request of OpenAI's chat schema: {@code {"messages": [...], "stream": ...}}.
 *
 * @param model the model that the client names, or null
 * @param messages the conversation
 * @param parameters what is generated with
 * @param stream whether tokens are sent as they come
 * @param streamUsage whether a stream ends with the numbers of tokens
 * @param logProbs whether the response has log-probabilities
 */
record ChatRequest(
        String model,
        List<ChatMessage> messages,
        Map<String, Object> parameters,
        boolean stream,
        boolean streamUsage,
        boolean logProbs)
        implements ServingRequest {

    private static final String NO_TOOLS =
            "is not supported: the engine KvQuant calls no tools; leave it out.";

    /** Settings that are ours under the same name. */
    private static final List<String> SAME =
            List.of(
                    "temperature",
                    "top_p",
                    "seed",
                    "top_k",
                    "min_p",
                    "do_sample",
                    "repetition_penalty",
                    "ignore_eos",
                    "top_logprobs");

    static ChatRequest read(JsonFields fields) {
        if (fields.isEmptyValue("messages")) {
            throw new IllegalArgumentException(
                    "messages is empty; send at least one message, such as {\"role\": \"user\","
                            + " \"content\": \"text\"}.");
        }
        refuseTools(fields);
        Map<String, Object> settings = new HashMap<>();
        SAME.forEach(name -> fields.copy(name, name, settings));
        fields.copy("max_tokens", "max_new_tokens", settings);
        fields.copy("max_completion_tokens", "max_new_tokens", settings);
        List<String> stops = fields.strings("stop");
        if (!stops.isEmpty()) {
            settings.put("stop", stops);
        }
        boolean logProbs = fields.bool("logprobs");
        Object alternatives = settings.getOrDefault("top_logprobs", "0");
        if (!logProbs && !"0".equals(alternatives)) {
            throw new IllegalArgumentException(
                    "top_logprobs is "
                            + alternatives
                            + ", but logprobs is not true; set it, or leave top_logprobs out.");
        }
        settings.put("logprobs", logProbs);
        List<ChatMessage> messages = new ArrayList<>();
        fields.objects("messages").forEach(message -> messages.add(message(message)));
        boolean stream = fields.bool("stream");
        JsonFields streamOptions = fields.object("stream_options");
        boolean usage = streamOptions.bool("include_usage");
        streamOptions.requireNothingElse();
        JsonFields responseFormat = fields.object("response_format");
        responseFormat.requireNeutral("type", "text");
        responseFormat.requireNothingElse();
        UnsupportedFields.refuse(fields);
        String model = fields.string("model");
        // They say who asks and where it is kept, not what is generated.
        fields.ignore("user", "metadata", "store", "service_tier", "safety_identifier");
        fields.ignore("prompt_cache_key", "parallel_tool_calls");
        fields.requireNothingElse();
        return new ChatRequest(model, messages, settings, stream, usage, logProbs);
    }

    private static void refuseTools(JsonFields fields) {
        fields.refuse("tools", NO_TOOLS);
        fields.refuse("functions", NO_TOOLS);
        fields.refuse("function_call", NO_TOOLS);
        fields.requireNeutral("tool_choice", "none");
    }

    private static ChatMessage message(JsonFields fields) {
        String role = fields.string("role");
        if (role == null) {
            throw new IllegalArgumentException(
                    "A message has no role; allowed: system, user, assistant.");
        }
        if ("tool".equals(role) || "function".equals(role)) {
            throw new IllegalArgumentException("A message with role " + role + " " + NO_TOOLS);
        }
        fields.refuse("tool_calls", NO_TOOLS);
        fields.refuse("function_call", NO_TOOLS);
        fields.ignore("name", "refusal", "annotations");
        String content = content(fields);
        fields.requireNothingElse();
        return new ChatMessage(role, content);
    }

    private static String content(JsonFields fields) {
        JsonElement content = fields.element("content");
        if (content == null) {
            return "";
        }
        if (!content.isJsonArray()) {
            return fields.string("content");
        }
        StringBuilder text = new StringBuilder();
        for (JsonFields part : fields.objects("content")) {
            String type = part.string("type");
            if (!"text".equals(type)) {
                throw new IllegalArgumentException(
                        "A message has a part of type " + type + "; allowed: text.");
            }
            String piece = part.string("text");
            text.append(piece == null ? "" : piece);
            part.requireNothingElse();
        }
        return text.toString();
    }

    @Override
    public List<int[]> prompts(TextModel textModel) {
        if (textModel.template() == null) {
            throw new IllegalArgumentException(
                    "The request has messages, but this model has no chat template, or is not to"
                            + " use it; send inputs instead.");
        }
        return List.of(textModel.encode(messages));
    }

    @Override
    public ResponseFormat format(FormatOptions options) {
        String name = model == null ? options.modelName() : model;
        ChatParts parts = new ChatParts(options.id(), name, logProbs, options.tokens());
        return stream ? new ChatEvents(parts, streamUsage) : new ChatJson(parts);
    }

    @Override
    public String error(ServingError error) {
        return errorBody(error);
    }

    static String errorBody(ServingError error) {
        return JsonText.of(ChatParts.error(error));
    }
}
