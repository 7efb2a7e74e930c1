/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * A request of the LMI schema: {@code {"inputs": ..., "parameters": {...}, "stream": ...}}.
 *
 * @param inputs the prompts
 * @param list whether inputs was a list, so that the response is one
 * @param parameters what is generated with
 * @param stream whether tokens are sent as they come
 * @param details whether the response has details
 * @param fullText whether generated_text begins with the prompt
 */
record LmiRequest(
        List<String> inputs,
        boolean list,
        Map<String, Object> parameters,
        boolean stream,
        boolean details,
        boolean fullText)
        implements ServingRequest {

    static final String NO_ADAPTERS =
            "is not supported: the engine KvQuant has no adapters; leave it out, or merge the"
                    + " adapter into the checkpoint.";

    /** Settings that are ours under the same name. */
    private static final List<String> SAME =
            List.of(
                    "max_new_tokens",
                    "temperature",
                    "top_k",
                    "top_p",
                    "min_p",
                    "do_sample",
                    "repetition_penalty",
                    "seed",
                    "ignore_eos");

    static LmiRequest read(JsonFields fields) {
        List<String> inputs = fields.strings("inputs");
        JsonFields parameters = fields.object("parameters");
        boolean stream = fields.bool("stream");
        fields.requireNothingElse();
        Map<String, Object> settings = new HashMap<>();
        SAME.forEach(name -> parameters.copy(name, name, settings));
        parameters.copy("ignore_eos_token", "ignore_eos", settings);
        List<String> stops = new ArrayList<>(parameters.strings("stop_sequences"));
        stops.addAll(parameters.strings("stop"));
        if (!stops.isEmpty()) {
            settings.put("stop", stops);
        }
        boolean details = parameters.bool("details");
        boolean fullText = parameters.bool("return_full_text");
        parameters.refuse("adapters", NO_ADAPTERS);
        UnsupportedFields.refuse(parameters);
        parameters.requireNothingElse();
        if (details || stream) {
            settings.put("logprobs", true);
        }
        if (stream && inputs.size() > 1) {
            throw new IllegalArgumentException(
                    "stream is true, but inputs has "
                            + inputs.size()
                            + " prompts; send a request for each, or leave stream out.");
        }
        boolean list = fields.isList("inputs") && !stream;
        return new LmiRequest(inputs, list, settings, stream, details, fullText);
    }

    @Override
    public List<int[]> prompts(TextModel model) {
        boolean wrap = model.appliesTemplateAlways();
        return inputs.stream().map(wrap ? model::encode : model::encodePlain).toList();
    }

    @Override
    public ResponseFormat format(FormatOptions options) {
        if (!stream) {
            return new LmiJson(this);
        }
        boolean events =
                "sse".equals(options.formatter()) || options.accept().contains(LmiLines.EVENTS);
        return new LmiLines(this, events);
    }

    @Override
    public String error(ServingError error) {
        return errorBody(error);
    }

    static String errorBody(ServingError error) {
        return JsonText.of(JsonText.map("error", error.message(), "code", error.code()));
    }
}
