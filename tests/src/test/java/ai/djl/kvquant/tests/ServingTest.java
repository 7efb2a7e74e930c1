/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.inference.streaming.ChunkedBytesSupplier;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.tests.ServedModel.Response;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/**
 * Requests and responses of DJL Serving, in the LMI and the OpenAI chat schema. The timeout ends
 * what would hang; it measures nothing.
 */
@Timeout(value = 300, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
class ServingTest {

    private static final String PROPERTIES =
            ServedModel.PROPERTIES + "option.kv_cache_tokens=2048\n";
    private static final String TEMPLATE =
            "{% for m in messages %}{{ 'w10 ' + m.content + ' ' }}{% endfor %}w11";

    @TempDir Path directory;
    private SmallModel files;

    @BeforeEach
    void copyModel() throws Exception {
        JsonObject config = new JsonObject();
        config.addProperty("chat_template", TEMPLATE);
        files =
                SmallModel.in(directory)
                        .tokenizer()
                        .write("tokenizer_config.json", config.toString())
                        .write("serving.properties", PROPERTIES);
    }

    private ServedModel load(String... more) throws Exception {
        files.write("serving.properties", PROPERTIES + String.join("\n", more) + "\n");
        return ServedModel.load(directory);
    }

    /** What the model says after a prompt, with log-probabilities. */
    private static GenerationResult expected(ServedModel served, int newTokens, int... prompt) {
        KvQuantBlock block = (KvQuantBlock) served.model().getBlock();
        GenerationConfig config =
                SmallModel.config(newTokens).toBuilder().optTopLogProbs(2).build();
        return new Generator(block.scheduler(), null).generate(List.of(prompt), config).get(0);
    }

    private static String words(int... tokens) {
        StringBuilder text = new StringBuilder();
        for (int token : tokens) {
            text.append(text.isEmpty() ? "w" : " w").append(token);
        }
        return text.toString();
    }

    /** Tokens of a text that continues another. */
    private static String continued(int... tokens) {
        return " " + words(tokens);
    }

    @Test
    void lmi() throws Exception {
        try (ServedModel served = load()) {
            GenerationResult expected = expected(served, 20, 5, 6, 7);
            Response response = served.ask("{\"inputs\": \"w5 w6 w7\"}");
            assertEquals(200, response.code());
            assertEquals("application/json", response.contentType());
            // Readers of DJL may miss what comes with the end, so nothing does.
            assertEquals(List.of(response.body(), ""), response.chunks());
            assertEquals(Set.of("generated_text"), response.object().keySet());
            assertEquals(
                    continued(expected.tokens()),
                    response.object().get("generated_text").getAsString());
        }
    }

    @Test
    void lmiDetails() throws Exception {
        try (ServedModel served = load()) {
            GenerationResult expected = expected(served, 4, 5, 6);
            JsonObject json =
                    served.ask(
                                    """
                                    {"inputs": ["w5 w6"], "parameters": {"max_new_tokens": 4,
                                     "details": true, "return_full_text": true}}\
                                    """)
                            .json()
                            .getAsJsonArray()
                            .get(0)
                            .getAsJsonObject();
            assertEquals(
                    "w5 w6" + continued(expected.tokens()),
                    json.get("generated_text").getAsString());
            JsonObject details = json.getAsJsonObject("details");
            assertEquals("length", details.get("finish_reason").getAsString());
            assertEquals(4, details.get("generated_tokens").getAsInt());
            assertEquals("w5 w6", details.get("inputs").getAsString());
            JsonArray tokens = details.getAsJsonArray("tokens");
            for (int i = 0; i < 4; ++i) {
                JsonObject token = tokens.get(i).getAsJsonObject();
                assertEquals(Set.of("id", "text", "log_prob"), token.keySet());
                assertEquals(expected.tokens()[i], token.get("id").getAsInt());
                assertEquals(
                        expected.logProbs().get(i).logProb(),
                        token.get("log_prob").getAsFloat(),
                        1e-3);
            }
        }
    }

    @Test
    void lmiList() throws Exception {
        try (ServedModel served = load()) {
            JsonArray texts = served.ask("{\"inputs\": [\"w5\", \"w9\"]}").json().getAsJsonArray();
            for (int i = 0; i < 2; ++i) {
                assertEquals(
                        continued(expected(served, 20, i == 0 ? 5 : 9).tokens()),
                        texts.get(i).getAsJsonObject().get("generated_text").getAsString());
            }
        }
    }

    private static void requireLines(List<JsonObject> lines, int[] tokens) {
        assertEquals(tokens.length, lines.size());
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < tokens.length; ++i) {
            JsonObject token = lines.get(i).getAsJsonObject("token");
            assertEquals(tokens[i], token.get("id").getAsInt());
            text.append(token.get("text").getAsString());
            boolean last = i == tokens.length - 1;
            assertEquals(
                    last ? Set.of("token", "generated_text", "details") : Set.of("token"),
                    lines.get(i).keySet());
        }
        JsonObject last = lines.get(lines.size() - 1);
        assertEquals(continued(tokens), text.toString());
        assertEquals(text.toString(), last.get("generated_text").getAsString());
        JsonObject details = last.getAsJsonObject("details");
        assertEquals("length", details.get("finish_reason").getAsString());
        assertEquals(tokens.length, details.get("generated_tokens").getAsInt());
    }

    private static final String STREAM =
            "{\"inputs\": \"w5 w6 w7\", \"stream\": true, \"parameters\": {\"details\": true}}";

    @Test
    void lmiStream() throws Exception {
        try (ServedModel served = load()) {
            int[] tokens = expected(served, 20, 5, 6, 7).tokens();
            Response response = served.ask(STREAM);
            assertEquals("application/jsonlines", response.contentType());
            requireLines(response.lines(), tokens);
            Input input = ServedModel.input(STREAM);
            input.addProperty("Accept", "text/event-stream");
            Response events = Response.read(served.start(input));
            assertEquals("text/event-stream", events.contentType());
            requireLines(objects(events.events()), tokens);
        }
        try (ServedModel served = load("option.output_formatter=sse")) {
            assertEquals("text/event-stream", served.ask(STREAM).contentType());
        }
    }

    private static List<JsonObject> objects(List<String> events) {
        return events.stream().map(e -> JsonParser.parseString(e).getAsJsonObject()).toList();
    }

    /** Both names of the field count, also together. */
    @Test
    void stopSequencesOfBothNames() throws Exception {
        try (ServedModel served = load()) {
            String third = "w" + expected(served, 20, 5, 6, 7).tokens()[2];
            String body =
                    """
                    {"inputs": "w5 w6 w7", "parameters": {"details": true,
                     "stop_sequences": ["never"], "stop": "%s"}}\
                    """;
            JsonObject json = served.ask(body.formatted(third)).object();
            assertEquals(
                    "stop_sequence",
                    json.getAsJsonObject("details").get("finish_reason").getAsString());
        }
    }

    @Test
    void endsAtStopSequencesAndEndOfSequence() throws Exception {
        try (ServedModel served = load()) {
            int[] tokens = expected(served, 20, 5, 6, 7).tokens();
            String third = "w" + tokens[2];
            JsonObject json =
                    served.ask(
                                    """
                                    {"inputs": "w5 w6 w7", "parameters": {"details": true,
                                     "stop_sequences": ["%s"]}}\
                                    """
                                            .formatted(third))
                            .object();
            assertEquals(
                    "stop_sequence",
                    json.getAsJsonObject("details").get("finish_reason").getAsString());
            assertFalse(json.get("generated_text").getAsString().contains(third));
            files.config("eos_token_id", Integer.toString(tokens[2]));
        }
        try (ServedModel served = load()) {
            JsonObject choice =
                    served.ask(
                                    "{\"messages\": [{\"role\": \"user\", \"content\": \"w5\"}],"
                                            + " \"ignore_eos\": true, \"max_tokens\": 3}")
                            .object()
                            .getAsJsonArray("choices")
                            .get(0)
                            .getAsJsonObject();
            assertEquals("length", choice.get("finish_reason").getAsString());
            JsonObject details =
                    served.ask(
                                    """
                                    {"inputs": "w5 w6 w7", "parameters": {"details": true,
                                     "ignore_eos_token": false}}\
                                    """)
                            .object()
                            .getAsJsonObject("details");
            assertEquals("eos_token", details.get("finish_reason").getAsString());
            assertTrue(details.get("generated_tokens").getAsInt() <= 3);
        }
    }

    private static String chat(String more) {
        return "{\"model\": \"m\", \"messages\": [{\"role\": \"system\", \"content\": \"w7\"},"
                + " {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"w8\"}]}]"
                + more
                + "}";
    }

    /** The template's rendering of {@link #chat}. */
    private static final int[] CHAT = {10, 7, 10, 8, 11};

    @Test
    void chatCompletion() throws Exception {
        try (ServedModel served = load()) {
            GenerationResult expected = expected(served, 20, CHAT);
            Response response = served.ask(chat(", \"logprobs\": true, \"top_logprobs\": 2"));
            assertEquals(200, response.code(), response.body());
            JsonObject json = response.object();
            assertEquals(
                    Set.of("id", "object", "created", "model", "choices", "usage"), json.keySet());
            assertEquals("chatcmpl-r1", json.get("id").getAsString());
            assertEquals("chat.completion", json.get("object").getAsString());
            assertEquals("m", json.get("model").getAsString());
            JsonObject choice = json.getAsJsonArray("choices").get(0).getAsJsonObject();
            assertEquals(Set.of("index", "message", "logprobs", "finish_reason"), choice.keySet());
            JsonObject message = choice.getAsJsonObject("message");
            assertEquals("assistant", message.get("role").getAsString());
            assertEquals(continued(expected.tokens()), message.get("content").getAsString());
            JsonArray content = choice.getAsJsonObject("logprobs").getAsJsonArray("content");
            assertEquals(20, content.size());
            JsonObject first = content.get(0).getAsJsonObject();
            assertEquals(Set.of("token", "logprob", "bytes", "top_logprobs"), first.keySet());
            assertEquals("w" + expected.tokens()[0], first.get("token").getAsString());
            assertEquals(2, first.getAsJsonArray("top_logprobs").size());
            assertEquals(
                    expected.topLogProbs().get(0).get(1).logProb(),
                    first.getAsJsonArray("top_logprobs")
                            .get(1)
                            .getAsJsonObject()
                            .get("logprob")
                            .getAsFloat(),
                    1e-3);
            assertEquals(
                    JsonParser.parseString(
                            "{\"prompt_tokens\":5,\"completion_tokens\":20,\"total_tokens\":25}"),
                    json.get("usage"));
        }
    }

    @Test
    void chatChunks() throws Exception {
        try (ServedModel served = load()) {
            int[] tokens = expected(served, 20, CHAT).tokens();
            Response response =
                    served.ask(
                            chat(
                                    ", \"stream\": true, \"stream_options\": {\"include_usage\":"
                                            + " true}"));
            assertEquals("text/event-stream", response.contentType());
            List<String> events = response.events();
            assertEquals("[DONE]", events.get(events.size() - 1));
            List<JsonObject> chunks = objects(events.subList(0, events.size() - 1));
            JsonObject usage = chunks.get(chunks.size() - 1);
            assertEquals(0, usage.getAsJsonArray("choices").size());
            // As OpenAI has it: the field is there all along, or not at all.
            for (JsonObject chunk : chunks.subList(0, chunks.size() - 1)) {
                assertTrue(chunk.get("usage").isJsonNull(), chunk.toString());
            }
            for (JsonObject chunk : withoutUsage(served)) {
                assertFalse(chunk.has("usage"), chunk.toString());
            }
            assertEquals(25, usage.getAsJsonObject("usage").get("total_tokens").getAsInt());
            StringBuilder text = new StringBuilder();
            for (JsonObject chunk : chunks.subList(0, chunks.size() - 1)) {
                assertEquals("chat.completion.chunk", chunk.get("object").getAsString());
                JsonObject choice = chunk.getAsJsonArray("choices").get(0).getAsJsonObject();
                assertEquals(
                        Set.of("index", "delta", "logprobs", "finish_reason"), choice.keySet());
                JsonObject delta = choice.getAsJsonObject("delta");
                assertEquals(text.isEmpty(), delta.has("role"));
                text.append(delta.get("content").getAsString());
                boolean last = chunk == chunks.get(chunks.size() - 2);
                assertEquals(last, !choice.get("finish_reason").isJsonNull());
            }
            assertEquals(continued(tokens), text.toString());
        }
    }

    private static List<JsonObject> withoutUsage(ServedModel served) throws Exception {
        List<String> events = served.ask(chat(", \"stream\": true")).events();
        return objects(events.subList(0, events.size() - 1));
    }

    @Test
    void aStreamBeginsBeforeItEnds() throws Exception {
        try (ServedModel served = load()) {
            Output output =
                    served.start(
                            ServedModel.input(
                                    "{\"inputs\": \"w5\", \"stream\": true, \"parameters\":"
                                            + " {\"max_new_tokens\": 400}}"));
            ChunkedBytesSupplier data = (ChunkedBytesSupplier) output.getData();
            data.nextChunk(60, TimeUnit.SECONDS);
            assertTrue(data.hasNext());
            assertEquals(399, Response.read(output).lines().size());
        }
    }

    /** The scheduler is held up by asking another request whether its client is gone. */
    @Test
    void aSilentStreamIsKeptAlive() throws Exception {
        CountDownLatch goOn = new CountDownLatch(1);
        try (ServedModel served = load("option.keep_alive_seconds=1")) {
            Output output =
                    served.start(
                            ServedModel.input(
                                    "{\"inputs\": \"w5\", \"stream\": true, \"parameters\":"
                                            + " {\"max_new_tokens\": 400}}"));
            ChunkedBytesSupplier data = (ChunkedBytesSupplier) output.getData();
            StringBuilder text = new StringBuilder(next(data));
            Input slow =
                    new Input() {
                        @Override
                        public boolean isCancelled() {
                            try {
                                goOn.await();
                            } catch (InterruptedException e) {
                                throw new IllegalStateException(e);
                            }
                            return true;
                        }
                    };
            slow.add("data", "{\"inputs\": \"w6\"}".getBytes(StandardCharsets.UTF_8));
            served.start(slow);
            String chunk = "";
            while (!chunk.equals(" ") && data.hasNext()) {
                chunk = next(data);
                text.append(chunk);
            }
            assertEquals(" ", chunk, "the stream was over before it was held up");
            goOn.countDown();
            Response.read(output).chunks().forEach(text::append);
            assertEquals(400, text.toString().lines().map(JsonParser::parseString).count());
        } finally {
            goOn.countDown();
        }
    }

    private static String next(ChunkedBytesSupplier data) throws InterruptedException {
        return new String(data.nextChunk(60, TimeUnit.SECONDS), StandardCharsets.UTF_8);
    }

    @Test
    void concurrentRequests() throws Exception {
        ExecutorService clients = Executors.newFixedThreadPool(64);
        try (ServedModel served = load()) {
            List<Future<Response>> responses = new ArrayList<>();
            for (int i = 0; i < 64; ++i) {
                String body = concurrentRequest(i);
                responses.add(clients.submit(() -> served.ask(body)));
            }
            for (int i = 0; i < 64; ++i) {
                String text = continued(expected(served, 4 + i % 9, 20 + i, 3, 4).tokens());
                assertEquals(text, textOf(responses.get(i).get()), "request " + i);
            }
        } finally {
            clients.shutdownNow();
        }
    }

    private static String concurrentRequest(int i) {
        String stream = i % 2 == 0 ? "true" : "false";
        int tokens = 4 + i % 9;
        if (i % 3 == 0) {
            return "{\"inputs\": \"w%d w3 w4\", \"stream\": %s, \"parameters\":"
                            .formatted(20 + i, stream)
                    + " {\"max_new_tokens\": %d, \"details\": true}}".formatted(tokens);
        }
        return "{\"inputs\": [\"w%d w3 w4\"], \"parameters\": {\"max_new_tokens\": %d}}"
                .formatted(20 + i, tokens);
    }

    private static String textOf(Response response) {
        if ("application/jsonlines".equals(response.contentType())) {
            List<JsonObject> lines = response.lines();
            return lines.get(lines.size() - 1).get("generated_text").getAsString();
        }
        JsonObject json =
                response.json().isJsonArray()
                        ? response.json().getAsJsonArray().get(0).getAsJsonObject()
                        : response.object();
        return json.get("generated_text").getAsString();
    }
}
