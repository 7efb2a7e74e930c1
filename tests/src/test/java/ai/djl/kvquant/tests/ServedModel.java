/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import ai.djl.inference.Predictor;
import ai.djl.inference.streaming.ChunkedBytesSupplier;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import ai.djl.translate.TranslateException;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.TimeUnit;

/**
 * A model loaded and asked as DJL Serving does it, without the server: serving.properties and the
 * environment become criteria for (Input, Output), a request's body is an input's data, and a
 * response is read chunk by chunk, its status with the first.
 */
final class ServedModel implements AutoCloseable {

    /** A serving.properties. */
    static final String PROPERTIES =
            """
            engine=KvQuant
            translatorFactory=ai.djl.kvquant.translate.KvQuantTranslatorFactory
            option.dtype=fp32
            ignore_eos=true
            max_new_tokens=20
            """;

    private final ZooModel<Input, Output> model;

    private ServedModel(ZooModel<Input, Output> model) {
        this.model = model;
    }

    static ServedModel load(Path directory) throws Exception {
        return load(directory, Map.of());
    }

    /** Loads a model that has a serving.properties. */
    static ServedModel load(Path directory, Map<String, String> environment) throws Exception {
        Properties properties = new Properties();
        try (InputStream in = Files.newInputStream(directory.resolve("serving.properties"))) {
            properties.load(in);
        }
        environment.forEach((name, value) -> apply(properties, name, value));
        Criteria.Builder<Input, Output> criteria =
                Criteria.builder()
                        .setTypes(Input.class, Output.class)
                        .optModelUrls(directory.toUri().toString())
                        .optModelName("served")
                        .optEngine(properties.getProperty("engine"));
        for (String name : properties.stringPropertyNames()) {
            String value = properties.getProperty(name);
            if (name.startsWith("option.")) {
                criteria.optOption(name.substring(7), value);
            } else {
                criteria.optArgument(name, value);
            }
        }
        return new ServedModel(criteria.build().loadModel());
    }

    /** What the file says comes first. */
    private static void apply(Properties properties, String name, String value) {
        if (name.startsWith("OPTION_")) {
            String key = name.substring(7).toLowerCase(Locale.ROOT);
            properties.putIfAbsent("engine".equals(key) ? key : "option." + key, value);
        }
    }

    ZooModel<Input, Output> model() {
        return model;
    }

    static Input input(String body) {
        Input input = new Input();
        input.addProperty("Content-Type", "application/json");
        input.addProperty("requestId", "r1");
        input.add("data", body.getBytes(StandardCharsets.UTF_8));
        return input;
    }

    Response ask(String body) throws Exception {
        return Response.read(start(input(body)));
    }

    /** What a worker does. */
    Output start(Input input) throws TranslateException {
        try (Predictor<Input, Output> predictor = model.newPredictor()) {
            return predictor.batchPredict(List.of(input)).get(0);
        }
    }

    @Override
    public void close() {
        model.close();
    }

    /**
     * A response as a client gets it.
     *
     * @param code the HTTP status
     * @param reason its reason phrase
     * @param headers the properties of the output
     * @param chunks the chunks of the body
     */
    record Response(int code, String reason, Map<String, String> headers, List<String> chunks) {

        static Response read(Output output) throws InterruptedException {
            List<String> chunks = new ArrayList<>();
            if (output.getData() instanceof ChunkedBytesSupplier data) {
                while (data.hasNext()) {
                    byte[] chunk = data.nextChunk(120, TimeUnit.SECONDS);
                    chunks.add(new String(chunk, StandardCharsets.UTF_8));
                }
            } else {
                chunks.add(output.getData().getAsString());
            }
            return new Response(
                    output.getCode(), output.getMessage(), output.getProperties(), chunks);
        }

        String body() {
            return String.join("", chunks);
        }

        JsonElement json() {
            return JsonParser.parseString(body());
        }

        JsonObject object() {
            return json().getAsJsonObject();
        }

        String contentType() {
            return headers.get("Content-Type");
        }

        /** The body of application/jsonlines. */
        List<JsonObject> lines() {
            return body().lines().map(l -> JsonParser.parseString(l).getAsJsonObject()).toList();
        }

        /** What follows {@code data: } in each event of text/event-stream. */
        List<String> events() {
            List<String> events = new ArrayList<>();
            for (String event : body().split("\n\n", -1)) {
                if (!event.isEmpty()) {
                    if (!event.startsWith("data: ") || event.indexOf('\n') >= 0) {
                        throw new AssertionError("not an event: " + event);
                    }
                    events.add(event.substring(6));
                }
            }
            return events;
        }
    }
}
