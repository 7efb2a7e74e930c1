/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.modality.Input;
import ai.djl.ndarray.BytesSupplier;
import java.util.List;
import java.util.Map;

/** What a client asks for, in one of the schemas of DJL Serving. */
sealed interface ServingRequest permits LmiRequest, ChatRequest {

    /** What each text is generated with, over the model's own settings. */
    Map<String, Object> parameters();

    /** The prompts as token ids. */
    List<int[]> prompts(TextModel model);

    /** Writes the response. */
    ResponseFormat format(FormatOptions options);

    /** An error as the client of this schema expects it. */
    String error(ServingError error);

    /**
     * What a response is written with.
     *
     * @param id names the request
     * @param modelName the name of the model
     * @param accept the media types that the client accepts, as it sent them; or empty
     * @param formatter the option output_formatter
     * @param tokens makes text of single tokens
     */
    record FormatOptions(
            String id, String modelName, String accept, String formatter, TokenTexts tokens) {}

    /**
     * Reads the fields of a request.
     *
     * @throws IllegalArgumentException if there are none
     */
    static JsonFields fields(Input input) {
        BytesSupplier data = input.getData();
        if (data == null) {
            throw new IllegalArgumentException(
                    "The request has no body; send a JSON object with inputs or messages, as"
                            + " Content-Type: application/json.");
        }
        return JsonFields.parse(data.getAsBytes());
    }

    /**
     * Understands a request.
     *
     * @throws IllegalArgumentException if it is not one, or asks for what is not supported
     */
    static ServingRequest read(Input input, JsonFields fields) {
        requireNoAdapter(input);
        fields.refuse("adapters", LmiRequest.NO_ADAPTERS);
        fields.refuse("adapter", LmiRequest.NO_ADAPTERS);
        if (isChat(fields)) {
            return ChatRequest.read(fields);
        }
        if (fields.has("inputs")) {
            return LmiRequest.read(fields);
        }
        if (fields.isEmptyValue("inputs")) {
            throw new IllegalArgumentException(
                    "inputs is empty; send a text, or a list of one or more texts.");
        }
        throw new IllegalArgumentException(
                "The request has neither inputs nor messages; send {\"inputs\": \"text\"} or"
                        + " {\"messages\": [{\"role\": \"user\", \"content\": \"text\"}]}.");
    }

    private static boolean isChat(JsonFields fields) {
        return fields.has("messages") || fields.isEmptyValue("messages") && !fields.has("inputs");
    }

    /** An error as the client expects it whose request is none; LMI's if it is of no schema. */
    static String error(JsonFields fields, ServingError error) {
        return fields != null && isChat(fields)
                ? ChatRequest.errorBody(error)
                : LmiRequest.errorBody(error);
    }

    private static void requireNoAdapter(Input input) {
        String header = "X-Amzn-SageMaker-Adapter-Identifier";
        if (input.getContent().contains("adapter") || input.getProperty(header, null) != null) {
            throw new IllegalArgumentException("adapter " + LmiRequest.NO_ADAPTERS);
        }
    }
}
