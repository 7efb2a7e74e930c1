/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.tests.ServedModel.Response;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** How DJL Serving hands options to a model, and what they change in its responses. */
class ServingOptionsTest {

    private static final String PROPERTIES =
            ServedModel.PROPERTIES + "option.kv_cache_tokens=2048\n";

    @TempDir Path directory;
    private SmallModel files;

    @BeforeEach
    void copyModel() throws Exception {
        files = SmallModel.in(directory).tokenizer();
    }

    private ServedModel load(String option) throws Exception {
        files.write("serving.properties", PROPERTIES + "option." + option + "\n");
        return ServedModel.load(directory);
    }

    @Test
    void environmentAndUrl() throws Exception {
        files.write("serving.properties", PROPERTIES);
        Map<String, String> environment = Map.of("OPTION_KV_CACHE_DTYPE", "rotatekv2");
        try (ServedModel served = ServedModel.load(directory, environment)) {
            assertEquals("rotatekv2", served.ask("{\"inputs\": \"w5\"}").headers().get(DTYPE));
        }
        files.write("serving.properties", PROPERTIES + "option.kv_cache_dtype=rotatekv4\n");
        try (ServedModel served = ServedModel.load(directory, environment)) {
            assertEquals("rotatekv4", served.ask("{\"inputs\": \"w5\"}").headers().get(DTYPE));
        }
    }

    private static final String DTYPE = "x-kvquant-kv-dtype";

    /** Only this line changes between auto and int2: the schema stays. */
    @Test
    void theFlagChangesBytesAndNotTheSchema() throws Exception {
        files.config("max_position_embeddings", "8192");
        StringBuilder prompt = new StringBuilder();
        for (int token : SmallModel.prompt(4000, 3)) {
            prompt.append(" w").append(token);
        }
        String body =
                "{\"inputs\": \"%s\", \"parameters\": {\"details\": true}}"
                        .formatted(prompt.toString().strip());
        Response auto = bigRequest("auto", body);
        Response int2 = bigRequest("int2", body);
        assertEquals(auto.object().keySet(), int2.object().keySet());
        assertEquals(
                auto.object().getAsJsonObject("details").keySet(),
                int2.object().getAsJsonObject("details").keySet());
        assertEquals(auto.headers().keySet(), int2.headers().keySet());
        assertNotEquals(auto.headers().get(DTYPE), int2.headers().get(DTYPE));
        double fp16 = Double.parseDouble(int2.headers().get("x-kvquant-kv-fp16-bytes"));
        double bytes = Double.parseDouble(int2.headers().get("x-kvquant-kv-bytes"));
        assertTrue(fp16 >= 5 * bytes, bytes + " of " + fp16);
    }

    private Response bigRequest(String dtype, String body) throws Exception {
        files.write(
                "serving.properties",
                PROPERTIES.replace("2048", "5000") + "option.kv_cache_dtype=" + dtype + "\n");
        try (ServedModel served = ServedModel.load(directory)) {
            Response response = served.ask(body);
            assertEquals(200, response.code(), response.body());
            return response;
        }
    }

    @Test
    void refusesImpossibleOptions() {
        for (String option :
                List.of(
                        "max_running_requests=0",
                        "max_waiting_requests=x",
                        "prefill_chunk_tokens=-1",
                        "max_wait_seconds=0",
                        "keep_alive_seconds=x",
                        "output_formatter=xml",
                        "tgi_compat=true")) {
            String name = option.substring(0, option.indexOf('='));
            Throwable error = assertThrows(Exception.class, () -> load(option).close());
            while (error.getCause() != null && !error.getMessage().startsWith(name)) {
                error = error.getCause();
            }
            assertTrue(error.getMessage().startsWith(name), option + ": " + error.getMessage());
        }
    }

    @Test
    void refusesOtherSpellings() {
        Map<String, String> meant =
                Map.of(
                        "max-wait-seconds", "max_wait_seconds",
                        "KEEP_ALIVE_SECONDS", "keep_alive_seconds",
                        "outputFormatter", "output_formatter",
                        "apply-chat-template", "apply_chat_template");
        meant.forEach(
                (written, name) -> {
                    Throwable error =
                            assertThrows(Exception.class, () -> load(written + "=1").close());
                    while (error.getCause() != null) {
                        error = error.getCause();
                    }
                    assertEquals(
                            "Unknown option " + written + "; did you mean " + name + "?",
                            error.getMessage());
                });
    }
}
