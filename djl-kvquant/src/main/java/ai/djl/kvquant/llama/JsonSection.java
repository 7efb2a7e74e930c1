/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.MalformedModelException;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import com.google.gson.Strictness;
import com.google.gson.stream.JsonReader;
import com.google.gson.stream.JsonToken;
import java.io.IOException;
import java.io.StringReader;
import java.util.ArrayList;
import java.util.List;

/**
 * A JSON object whose values are read with their type and range checked; every error names the
 * source and the key. A key with the value {@code null} counts as absent, as in HuggingFace.
 */
final class JsonSection {

    private final String source;
    private final String prefix;
    private final JsonObject json;

    private JsonSection(String source, String prefix, JsonObject json) {
        this.source = source;
        this.prefix = prefix;
        this.json = json;
    }

    /**
     * Parses a whole document, which must be one strictly valid JSON object.
     *
     * @param text the document
     * @param source the name used in errors, usually the file
     * @return the object
     * @throws MalformedModelException if the document is anything else
     */
    static JsonSection parse(String text, String source) throws MalformedModelException {
        if (text.isBlank()) {
            // Gson would read this as null
            throw new MalformedModelException(source + " is empty.");
        }
        try (JsonReader reader = new JsonReader(new StringReader(text))) {
            reader.setStrictness(Strictness.STRICT);
            JsonElement element = JsonParser.parseReader(reader);
            if (reader.peek() != JsonToken.END_DOCUMENT) {
                throw new MalformedModelException(
                        source + " is not valid JSON: something follows its first value.");
            }
            if (!element.isJsonObject()) {
                throw new MalformedModelException(
                        source + " must hold a JSON object, not " + describe(element) + ".");
            }
            return new JsonSection(source, "", element.getAsJsonObject());
        } catch (JsonParseException | IOException | IllegalStateException e) {
            throw new MalformedModelException(
                    source + " is not valid JSON: " + firstLine(e) + ".", e);
        }
    }

    String source() {
        return source;
    }

    boolean has(String key) {
        JsonElement element = json.get(key);
        return element != null && !element.isJsonNull();
    }

    /** Whether the key is written at all, be its value {@code null}. */
    boolean mentions(String key) {
        return json.has(key);
    }

    Iterable<String> keys() {
        return json.keySet();
    }

    boolean isEmpty() {
        return json.size() == 0;
    }

    boolean sameAs(JsonSection other) {
        return json.equals(other.json);
    }

    JsonSection object(String key) throws MalformedModelException {
        JsonElement element = required(key);
        if (!element.isJsonObject()) {
            throw wrong(key, "must be a JSON object", element);
        }
        return new JsonSection(source, prefix + key + ".", element.getAsJsonObject());
    }

    int positiveInt(String key) throws MalformedModelException {
        JsonElement element = required(key);
        return integer(key, element, 1, Integer.MAX_VALUE, "must be a positive integer");
    }

    int positiveInt(String key, int defaultValue) throws MalformedModelException {
        return has(key) ? positiveInt(key) : defaultValue;
    }

    double positiveNumber(String key) throws MalformedModelException {
        JsonElement element = required(key);
        double value = number(element);
        if (!(value > 0) || Double.isInfinite(value)) {
            throw wrong(key, "must be a positive number", element);
        }
        return value;
    }

    double positiveNumber(String key, double defaultValue) throws MalformedModelException {
        return has(key) ? positiveNumber(key) : defaultValue;
    }

    /** A number that is finite and not negative; absent counts as 0. */
    double numberOrZero(String key) throws MalformedModelException {
        if (!has(key)) {
            return 0;
        }
        double value = number(json.get(key));
        if (!(value >= 0) || Double.isInfinite(value)) {
            throw wrong(key, "must be a number of at least 0", json.get(key));
        }
        return value;
    }

    boolean bool(String key, boolean defaultValue) throws MalformedModelException {
        if (!has(key)) {
            return defaultValue;
        }
        JsonElement element = json.get(key);
        if (!element.isJsonPrimitive() || !element.getAsJsonPrimitive().isBoolean()) {
            throw wrong(key, "must be true or false", element);
        }
        return element.getAsBoolean();
    }

    String string(String key) throws MalformedModelException {
        return text(key, required(key));
    }

    String string(String key, String defaultValue) throws MalformedModelException {
        return has(key) ? string(key) : defaultValue;
    }

    List<String> strings(String key) throws MalformedModelException {
        JsonElement element = required(key);
        if (!element.isJsonArray()) {
            throw wrong(key, "must be a list of strings", element);
        }
        List<String> values = new ArrayList<>();
        for (JsonElement item : element.getAsJsonArray()) {
            values.add(text(key, item));
        }
        return values;
    }

    /** Token ids: one integer or a list of them, each below the limit. */
    List<Integer> tokenIds(String key, int limit) throws MalformedModelException {
        JsonElement element = required(key);
        JsonArray array = new JsonArray();
        if (element.isJsonArray()) {
            array = element.getAsJsonArray();
        } else {
            array.add(element);
        }
        List<Integer> ids = new ArrayList<>();
        for (JsonElement item : array) {
            ids.add(
                    integer(
                            key,
                            item,
                            0,
                            limit - 1,
                            "must be a token id below vocab_size " + limit));
        }
        return List.copyOf(ids);
    }

    /**
     * The error for a value that is well-formed but not usable.
     *
     * @param key the key
     * @param rule what is allowed, for example "must be silu"
     * @return the exception to throw
     */
    MalformedModelException wrong(String key, String rule) {
        return wrong(key, rule, json.get(key));
    }

    /** The full path of a key, for errors that say more than one rule. */
    String path(String key) {
        return source + ": " + prefix + key;
    }

    private MalformedModelException wrong(String key, String rule, JsonElement found) {
        return new MalformedModelException(
                path(key) + " " + rule + ", but is " + describe(found) + ".");
    }

    private JsonElement required(String key) throws MalformedModelException {
        if (!has(key)) {
            throw new MalformedModelException(path(key) + " is missing.");
        }
        return json.get(key);
    }

    private String text(String key, JsonElement element) throws MalformedModelException {
        if (!element.isJsonPrimitive() || !element.getAsJsonPrimitive().isString()) {
            throw wrong(key, "must be a string", element);
        }
        return element.getAsString();
    }

    private int integer(String key, JsonElement element, int min, int max, String rule)
            throws MalformedModelException {
        double value = number(element);
        if (!(value >= min && value <= max) || value != Math.rint(value)) {
            throw wrong(key, rule, element);
        }
        return (int) value;
    }

    /** NaN for what is not a number, so that every range check fails on it. */
    private static double number(JsonElement element) {
        boolean isNumber = element.isJsonPrimitive() && element.getAsJsonPrimitive().isNumber();
        return isNumber ? element.getAsDouble() : Double.NaN;
    }

    private static String describe(JsonElement element) {
        String text = String.valueOf(element);
        return text.length() <= 60 ? text : text.substring(0, 57) + "...";
    }

    private static String firstLine(Exception e) {
        Throwable cause = e.getCause() != null ? e.getCause() : e;
        String message = String.valueOf(cause.getMessage());
        int end = message.indexOf('\n');
        return end < 0 ? message : message.substring(0, end);
    }
}
