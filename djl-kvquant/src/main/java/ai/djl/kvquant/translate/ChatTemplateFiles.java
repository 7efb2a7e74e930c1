/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;

/** Finds chat templates and special tokens in a model directory. */
final class ChatTemplateFiles {

    private static final String CONFIG = "tokenizer_config.json";
    private static final String JSON = "chat_template.json";

    private final Path directory;
    private final JsonObject config;

    ChatTemplateFiles(Path directory) throws IOException {
        this.directory = directory;
        config = read(CONFIG);
    }

    boolean hasTemplate() throws IOException {
        return !templates().isEmpty();
    }

    String template(String name) throws IOException {
        Map<String, String> templates = templates();
        if (templates.isEmpty()) {
            throw new IOException(
                    directory
                            + " has no chat template (chat_template.jinja, or chat_template in "
                            + CONFIG
                            + "); use an instruct model, or give the prompt as plain text (kvq"
                            + " generate --raw).");
        }
        String template = templates.get(name);
        if (template == null) {
            throw new IOException(
                    directory
                            + " has no chat template named '"
                            + name
                            + "'; choose one of "
                            + String.join(", ", templates.keySet())
                            + ".");
        }
        return template;
    }

    /** Returns the special tokens by name; either file may have them as strings or objects. */
    Map<String, String> specialTokens() throws IOException {
        Map<String, String> tokens = new LinkedHashMap<>();
        addTokens(read("special_tokens_map.json"), tokens);
        addTokens(config, tokens);
        return tokens;
    }

    private Map<String, String> templates() throws IOException {
        Map<String, String> templates = new LinkedHashMap<>();
        add(config, CONFIG, templates);
        add(read(JSON), JSON, templates);
        Path file = directory.resolve("chat_template.jinja");
        if (Files.isRegularFile(file)) {
            templates.put("default", Files.readString(file));
        }
        return templates;
    }

    private void add(JsonObject json, String file, Map<String, String> templates)
            throws IOException {
        JsonElement element = json.get("chat_template");
        if (element == null || element.isJsonNull()) {
            return;
        }
        try {
            if (element.isJsonArray()) {
                for (JsonElement each : element.getAsJsonArray()) {
                    JsonObject named = each.getAsJsonObject();
                    templates.put(text(named.get("name")), text(named.get("template")));
                }
            } else {
                templates.put("default", text(element));
            }
        } catch (IllegalStateException e) {
            throw new IOException(
                    directory.resolve(file)
                            + ": chat_template must be a string, or a list of objects with the"
                            + " strings name and template; mend it, or set"
                            + " apply_chat_template=false.",
                    e);
        }
    }

    private static String text(JsonElement element) {
        if (element == null
                || !element.isJsonPrimitive()
                || !element.getAsJsonPrimitive().isString()) {
            throw new IllegalStateException("not a string: " + element);
        }
        return element.getAsString();
    }

    private static void addTokens(JsonObject json, Map<String, String> tokens) {
        for (Map.Entry<String, JsonElement> entry : json.entrySet()) {
            JsonElement value = entry.getValue();
            if (value.isJsonObject() && value.getAsJsonObject().has("content")) {
                value = value.getAsJsonObject().get("content");
            }
            boolean text = value.isJsonPrimitive() && value.getAsJsonPrimitive().isString();
            if (entry.getKey().endsWith("_token") && text) {
                tokens.put(entry.getKey(), value.getAsString());
            }
        }
    }

    private JsonObject read(String name) throws IOException {
        Path file = directory.resolve(name);
        if (!Files.isRegularFile(file)) {
            return new JsonObject();
        }
        try {
            return JsonParser.parseString(Files.readString(file)).getAsJsonObject();
        } catch (JsonParseException | IllegalStateException e) {
            throw new IOException(
                    file + " is not a JSON object (" + e.getMessage() + "); download it again.", e);
        }
    }
}
