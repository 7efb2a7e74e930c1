/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples.programs;

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.io.PrintStream;
import java.net.ConnectException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * A client of a DJL Serving with a KvQuant model: sends a message in the OpenAI chat schema and
 * prints the answer as its events arrive. Needs Java and Gson only.
 */
public final class ServedChat {

    private static final String EVENT = "data: ";

    private ServedChat() {}

    /**
     * Runs the example.
     *
     * @param args the URL of the server, and the message
     * @throws Exception if the server does not answer
     */
    public static void main(String[] args) throws Exception {
        String message = args.length > 1 ? args[1] : "Why is the sky blue?";
        run(args.length > 0 ? args[0] : "http://127.0.0.1:8080", message, System.out);
    }

    /**
     * Prints the answer to a message.
     *
     * @param url the URL of the server
     * @param message the message
     * @param out where the answer goes
     * @throws IOException if there is no server, or it answers with an error
     * @throws InterruptedException if the thread is interrupted
     */
    public static void run(String url, String message, PrintStream out)
            throws IOException, InterruptedException {
        HttpRequest request =
                HttpRequest.newBuilder(URI.create(url + "/v1/chat/completions"))
                        .header("Content-Type", "application/json")
                        .POST(BodyPublishers.ofString(body(message).toString()))
                        .build();
        HttpResponse<Stream<String>> response;
        try {
            response = HttpClient.newHttpClient().send(request, BodyHandlers.ofLines());
        } catch (ConnectException e) {
            throw new IOException(
                    "No server answers at "
                            + url
                            + "; start one as examples/serving/README.md says, or give its URL.",
                    e);
        }
        try (Stream<String> lines = response.body()) {
            if (response.statusCode() != 200) {
                throw new IOException(
                        "The server answered with status "
                                + response.statusCode()
                                + ": "
                                + lines.collect(Collectors.joining("\n")));
            }
            for (String line : (Iterable<String>) lines::iterator) {
                if (line.startsWith(EVENT) && !line.equals(EVENT + "[DONE]")) {
                    print(line.substring(EVENT.length()), out);
                }
            }
        }
        out.println();
    }

    private static JsonObject body(String message) {
        JsonObject user = new JsonObject();
        user.addProperty("role", "user");
        user.addProperty("content", message);
        JsonArray messages = new JsonArray();
        messages.add(user);
        JsonObject body = new JsonObject();
        body.add("messages", messages);
        body.addProperty("max_tokens", 128);
        body.addProperty("stream", true);
        return body;
    }

    /** Once a stream has begun, an error is an event. */
    private static void print(String event, PrintStream out) throws IOException {
        JsonObject chunk = JsonParser.parseString(event).getAsJsonObject();
        if (chunk.has("error")) {
            throw new IOException("The server ended the answer: " + chunk.get("error"));
        }
        JsonObject choice = chunk.getAsJsonArray("choices").get(0).getAsJsonObject();
        JsonObject delta = choice.getAsJsonObject("delta");
        if (delta.has("content")) {
            out.print(delta.get("content").getAsString());
            out.flush();
        }
    }
}
