/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.inference.streaming.ChunkedBytesSupplier;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.kvquant.tests.ServedModel.Response;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Requests that can not be answered, and responses that can not be ended: a status and a message,
 * or a last event. The timeout ends what would hang; it measures nothing.
 */
@Timeout(value = 300, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
class ServingErrorsTest {

    private static final String TEMPLATE = "{{ messages[0].content }}";

    @TempDir Path directory;
    private SmallModel files;
    private ServedModel served;

    @BeforeEach
    void copyModel() throws Exception {
        JsonObject config = new JsonObject();
        config.addProperty("chat_template", TEMPLATE);
        files =
                SmallModel.in(directory)
                        .tokenizer()
                        .write("tokenizer_config.json", config.toString());
    }

    @AfterEach
    void close() {
        if (served != null) {
            served.close();
        }
    }

    private void load(String... options) throws Exception {
        files.write(
                "serving.properties", ServedModel.PROPERTIES + String.join("\n", options) + "\n");
        served = ServedModel.load(directory);
    }

    /**
     * A request that is refused.
     *
     * @param body what is sent
     * @param fragments parts of the message
     */
    record Bad(String body, List<String> fragments) {}

    private static Bad bad(String body, String... fragments) {
        return new Bad(body, List.of(fragments));
    }

    private static Bad parameter(String json, String... fragments) {
        return bad("{\"inputs\": \"w5\", \"parameters\": {" + json + "}}", fragments);
    }

    private static Bad chat(String json, String... fragments) {
        String messages = "\"messages\": [{\"role\": \"user\", \"content\": \"w5\"}]";
        return bad("{" + messages + ", " + json + "}", fragments);
    }

    static List<Bad> badRequests() {
        return List.of(
                bad("", "not a JSON object"),
                bad("{", "not valid JSON"),
                bad("{\"inputs\": 'w5'}", "not valid JSON"),
                bad("{\"inputs\": \"w5\"} x", "not valid JSON"),
                bad("[".repeat(100000), "not valid JSON"),
                bad("[1]", "not a JSON object"),
                bad("{}", "neither inputs nor messages"),
                bad("{\"inputs\": null}", "neither inputs nor messages"),
                bad("{\"inputs\": \"\"}", "The prompt is empty"),
                bad("{\"inputs\": 5}", "inputs is 5", "a string or a list of strings"),
                bad("{\"inputs\": [\"w5\", 5]}", "inputs is", "a string or a list of strings"),
                bad("{\"inputs\": \"w5\", \"stream\": \"yes\"}", "stream is \"yes\"", "true or"),
                bad("{\"inputs\": [\"w5\", \"w6\"], \"stream\": true}", "2 prompts"),
                bad("{\"inputs\": \"w5\", \"inptus\": 1}", "field 'inptus'", "no effect", "stream"),
                bad("{\"inputs\": \"w5\", \"adapters\": \"a\"}", "adapters is not supported"),
                bad("{\"inputs\": \"w5\", \"parameters\": 3}", "parameters is not a JSON object"),
                parameter("\"top_q\": 1", "field 'top_q'", "top_p"),
                parameter("\"top_p\": 2", "top_p 2", "above 0 and at most 1"),
                parameter("\"temperature\": \"hot\"", "temperature 'hot'", "must be a number"),
                parameter("\"temperature\": [1]", "temperature is [1]", "a single value"),
                parameter("\"max_new_tokens\": 0", "max_new_tokens 0", "at least 1"),
                parameter("\"max_new_tokens\": 1e999999999", "max_new_tokens", "whole number"),
                parameter("\"stop_sequences\": [\"\"]", "stop string is empty"),
                parameter("\"num_beams\": 4", "num_beams 4 is not supported"),
                parameter("\"presence_penalty\": 0.5", "presence_penalty 0.5 is not supported"),
                parameter("\"adapters\": [\"a\"]", "adapters is not supported"),
                chat("\"tools\": [{\"type\": \"function\"}]", "tools is not supported"),
                chat("\"tool_choice\": \"auto\"", "tool_choice", "not supported"),
                chat("\"n\": 2", "n 2 is not supported"),
                chat("\"logit_bias\": {\"5\": 1}", "field 'logit_bias'"),
                chat("\"response_format\": {\"type\": \"json_object\"}", "json_object", "not"),
                chat("\"max_tokens\": \"x\"", "max_new_tokens 'x'"),
                chat("\"top_logprobs\": 2", "top_logprobs is 2, but logprobs is not true"),
                chat("\"top_logprobs\": 2, \"logprobs\": false", "logprobs is not true"),
                bad("{\"messages\": []}", "messages is empty; send at least one message"),
                bad("{\"inputs\": []}", "inputs is empty; send a text"),
                bad("{\"messages\": [5]}", "messages[0] is not a JSON object"),
                bad("{\"messages\": \"w5\"}", "messages is", "a list of objects"),
                bad("{\"messages\": [{\"content\": \"w5\"}]}", "no role"),
                bad("{\"messages\": [{\"role\": \"tool\", \"content\": \"w5\"}]}", "role tool"),
                bad(
                        "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\":"
                                + " \"image_url\"}]}]}",
                        "type image_url",
                        "allowed: text"));
    }

    @Test
    void refusesBadRequests() throws Exception {
        load();
        for (Bad bad : badRequests()) {
            requireRefused(served.ask(bad.body()), bad);
        }
        Response bytes = Response.read(served.start(withBody(new byte[] {'{', (byte) 0xff, '}'})));
        requireRefused(bytes, bad("{\\ff}", "not UTF-8"));
        requireRefused(Response.read(served.start(new Input())), bad("", "has no body"));
        Input adapter = ServedModel.input("{\"inputs\": \"w5\"}");
        adapter.addProperty("X-Amzn-SageMaker-Adapter-Identifier", "a");
        requireRefused(Response.read(served.start(adapter)), bad("", "adapter is not supported"));
        // Nothing is left behind.
        assertEquals(200, served.ask("{\"inputs\": \"w5\"}").code());
    }

    private static Input withBody(byte[] body) {
        Input input = new Input();
        input.add("data", body);
        return input;
    }

    private static void requireRefused(Response response, Bad bad) {
        String shown = bad.body().length() > 99 ? "long" : bad.body() + ": " + response.body();
        assertEquals(400, response.code(), shown);
        assertEquals("application/json", response.contentType());
        // In the schema of the request.
        boolean chat = bad.body().contains("\"messages\"");
        assertEquals(chat, response.object().get("error").isJsonObject(), shown);
        String message = messageOf(response.object());
        for (String fragment : bad.fragments()) {
            assertTrue(message.contains(fragment), shown);
        }
        assertTrue(response.reason().matches("[ -~]{3,256}"), response.reason());
    }

    /** The message in the error of either schema. */
    private static String messageOf(JsonObject body) {
        return body.get("error").isJsonObject()
                ? body.getAsJsonObject("error").get("message").getAsString()
                : body.get("error").getAsString();
    }

    /** What says the same as the default, or nothing, is no reason to refuse. */
    static List<String> harmless() {
        return List.of(
                "{\"inputs\": \"w5\", \"parameters\": {\"num_beams\": 1, \"n\": 1.0,"
                        + " \"decoder_input_details\": false, \"stop_sequences\": null}}",
                "{\"inputs\": \"w5\", \"messages\": []}",
                "{\"messages\": [{\"role\": \"user\", \"content\": \"w5\", \"name\": \"a\","
                        + " \"tool_calls\": []}], \"tools\": [], \"tool_choice\": \"none\", \"user\":"
                        + " \"u\", \"top_logprobs\": 0, \"frequency_penalty\": 0, \"response_format\":"
                        + " {\"type\": \"text\"}, \"logit_bias\": {}}");
    }

    @ParameterizedTest
    @MethodSource("harmless")
    void takesWhatChangesNothing(String body) throws Exception {
        load();
        Response response = served.ask(body);
        assertEquals(200, response.code(), response.body());
    }

    private static String prompt(int words) {
        return "w5 ".repeat(words).strip();
    }

    @Test
    void tooLongForTheModelOrTheCache() throws Exception {
        load("option.kv_cache_tokens=128", "option.max_batch_size=1");
        Response model = served.ask("{\"inputs\": \"" + prompt(600) + "\"}");
        assertEquals(400, model.code());
        assertTrue(messageOf(model.object()).contains("context of 512 tokens"), model.body());
        Response cache = served.ask("{\"inputs\": \"" + prompt(400) + "\", \"stream\": true}");
        assertEquals(413, cache.code(), cache.body());
        assertEquals("application/json", cache.contentType());
        assertEquals(413, cache.object().get("code").getAsInt());
        assertTrue(messageOf(cache.object()).contains("KV cache"), cache.body());
        Response chat =
                served.ask(
                        "{\"stream\": true, \"messages\": [{\"role\": \"user\", \"content\": \""
                                + prompt(400)
                                + "\"}]}");
        assertEquals(413, chat.code(), chat.body());
        JsonObject error = chat.object().getAsJsonObject("error");
        assertEquals("invalid_request_error", error.get("type").getAsString());
    }

    /** What was generated comes first. */
    @Test
    void aCacheThatFillsUp() throws Exception {
        load("option.kv_cache_tokens=128", "option.max_batch_size=1");
        String more = "\"parameters\": {\"max_new_tokens\": 400}}";
        String inputs = "{\"inputs\": \"" + prompt(100) + "\", ";
        Response whole = served.ask(inputs + more);
        assertEquals(413, whole.code());
        String text = whole.object().get("generated_text").getAsString();
        assertTrue(text.split(" ").length > 50, text);
        assertTrue(messageOf(whole.object()).contains("KV cache is full"), whole.body());

        Response stream = served.ask(inputs + "\"stream\": true, " + more);
        assertEquals(200, stream.code());
        List<JsonObject> lines = stream.lines();
        JsonObject last = lines.get(lines.size() - 1);
        assertEquals(text, last.get("generated_text").getAsString());
        assertEquals(-1, last.getAsJsonObject("token").get("id").getAsInt());
        assertEquals("error", last.getAsJsonObject("details").get("finish_reason").getAsString());
        assertTrue(messageOf(last).contains("KV cache is full"));

        List<String> events =
                served.ask(
                                "{\"stream\": true, \"max_tokens\": 400, \"messages\": [{\"role\":"
                                        + " \"user\", \"content\": \""
                                        + prompt(100)
                                        + "\"}]}")
                        .events();
        assertEquals("[DONE]", events.get(events.size() - 1));
        String error = events.get(events.size() - 2);
        assertTrue(messageOf(JsonParser.parseString(error).getAsJsonObject()).contains("full"));
    }

    @Test
    void tooManyRequests() throws Exception {
        load("option.max_waiting_requests=1", "option.max_running_requests=1");
        Output first = endless();
        ChunkedBytesSupplier data = (ChunkedBytesSupplier) first.getData();
        data.nextChunk(60, TimeUnit.SECONDS);
        Output second = served.start(ServedModel.input("{\"inputs\": \"w6\"}"));
        Response third = served.ask("{\"inputs\": \"w7\"}");
        assertEquals(429, third.code(), third.body());
        assertTrue(messageOf(third.object()).contains("limit of 1"), third.body());
        assertEquals(200, Response.read(first).code());
        assertEquals(200, Response.read(second).code());
    }

    /** Later would not help: it waits for nobody but itself. */
    @Test
    void aListThatNeverFits() throws Exception {
        load("option.max_waiting_requests=2");
        Response list = served.ask("{\"inputs\": [\"w5\", \"w6\", \"w7\"]}");
        assertEquals(400, list.code(), list.body());
        assertTrue(messageOf(list.object()).startsWith("3 prompts were given"), list.body());
        assertTrue(messageOf(list.object()).contains("at most 2"), list.body());
        assertEquals(200, served.ask("{\"inputs\": [\"w5\", \"w6\"]}").code());
    }

    /** Other users of the model hold pages, and give them back some time. */
    @Test
    void aCacheThatOthersFill() throws Exception {
        load("option.kv_cache_tokens=128", "option.max_batch_size=1");
        LanguageModel model = SmallModel.languageModel(served.model());
        String request = "{\"inputs\": \"%s\", \"parameters\": {\"max_new_tokens\": 60}}";
        String body = request.formatted(prompt(100));
        try (DecodingBatch held = model.prefill(List.of(SmallModel.prompt(150, 1)))) {
            Response none = served.ask(body);
            assertEquals(503, none.code(), none.body());
            assertTrue(messageOf(none.object()).contains("KV cache is full"), none.body());
            assertEquals(503, none.object().get("code").getAsInt());
            assertEquals(150, held.length(0));
        }
        try (DecodingBatch held = model.prefill(List.of(SmallModel.prompt(64, 2)))) {
            Response some = served.ask(body);
            assertEquals(503, some.code(), some.body());
            assertTrue(some.object().get("generated_text").getAsString().split(" ").length > 20);
            assertEquals(64, held.length(0));
        }
        assertEquals(200, served.ask(body).code());
    }

    private Output endless() throws Exception {
        return served.start(
                ServedModel.input(
                        "{\"inputs\": \"w5\", \"stream\": true,"
                                + " \"parameters\": {\"max_new_tokens\": 500}}"));
    }

    /** One that a client has left before its first byte ends without decoding. */
    @Test
    void disconnectedClients() throws Exception {
        load("option.max_running_requests=1");
        Output first = endless();
        ((ChunkedBytesSupplier) first.getData()).nextChunk(60, TimeUnit.SECONDS);
        Input input = ServedModel.input("{\"inputs\": \"w6\"}");
        Output second = served.start(input);
        input.setCancelled(true);
        Response left = Response.read(second);
        assertEquals(499, left.code());
        assertEquals("", left.body());
        assertTrue(((ChunkedBytesSupplier) first.getData()).hasNext());
    }

    @Test
    void closingTheModelEndsAStream() throws Exception {
        load();
        Output output = endless();
        ((ChunkedBytesSupplier) output.getData()).nextChunk(60, TimeUnit.SECONDS);
        Output waiting = served.start(ServedModel.input("{\"inputs\": \"w6\"}"));
        served.close();
        List<JsonObject> lines = Response.read(output).lines();
        JsonObject last = lines.get(lines.size() - 1);
        assertEquals(503, last.get("code").getAsInt());
        assertTrue(messageOf(last).startsWith("The model was closed"));
        Response unserved = Response.read(waiting);
        assertTrue(unserved.code() == 503 || unserved.code() == 200, unserved.body());
    }

    @Test
    void messagesNeedATemplate() throws Exception {
        files.delete("tokenizer_config.json");
        load();
        Response response =
                served.ask("{\"messages\": [{\"role\": \"user\", \"content\": \"w5\"}]}");
        assertEquals(400, response.code());
        assertTrue(messageOf(response.object()).contains("no chat template"), response.body());
    }

    @Test
    void theReasonPhraseIsOneLine() throws Exception {
        load();
        String name = "x\\r\\nSet-Cookie: a=b \u00e4" + "y".repeat(500);
        Response response = served.ask("{\"inputs\": \"w5\", \"" + name + "\": 1}");
        assertEquals(400, response.code());
        assertTrue(response.reason().matches("[ -~]{3,256}"), response.reason());
        byte[] body = response.body().getBytes(StandardCharsets.UTF_8);
        assertTrue(body.length < 2000);
    }
}
