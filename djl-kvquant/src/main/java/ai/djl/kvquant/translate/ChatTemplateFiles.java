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
                            + "); use an instruct model, or give the prompt as plain text.");
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
        add(config.get("chat_template"), templates);
        add(read("chat_template.json").get("chat_template"), templates);
        Path file = directory.resolve("chat_template.jinja");
        if (Files.isRegularFile(file)) {
            templates.put("default", Files.readString(file));
        }
        return templates;
    }

    private static void add(JsonElement element, Map<String, String> templates) {
        if (element == null || element.isJsonNull()) {
            return;
        }
        if (element.isJsonArray()) {
            for (JsonElement each : element.getAsJsonArray()) {
                JsonObject named = each.getAsJsonObject();
                templates.put(named.get("name").getAsString(), named.get("template").getAsString());
            }
        } else {
            templates.put("default", element.getAsString());
        }
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
                    file + " is not a JSON object; download it again. " + e.getMessage(), e);
        }
    }
}
