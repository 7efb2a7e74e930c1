/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonPrimitive;
import com.google.gson.Strictness;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * The fields of a JSON object of a request. Each is asked for by name, and those that nobody asked
 * for are refused in the end: a field without effect would deceive whoever sent it. A field that is
 * null, or an empty list or object, is as good as absent.
 */
final class JsonFields {

    private static final Gson GSON = new GsonBuilder().setStrictness(Strictness.STRICT).create();

    private final JsonObject object;
    private final String where;
    private final Set<String> known = new LinkedHashSet<>();

    private JsonFields(JsonObject object, String where) {
        this.object = object;
        this.where = where;
    }

    /** Reads the body of a request. */
    static JsonFields parse(byte[] body) {
        JsonElement element;
        try {
            String text =
                    StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(body)).toString();
            element = GSON.fromJson(text, JsonElement.class);
        } catch (CharacterCodingException e) {
            throw new IllegalArgumentException("The request is not UTF-8; send JSON in UTF-8.", e);
        } catch (JsonParseException e) {
            Throwable cause = e.getCause() == null ? e : e.getCause();
            String reason = String.valueOf(cause.getMessage()).lines().findFirst().orElse("");
            throw new IllegalArgumentException("The request is not valid JSON: " + reason, e);
        }
        return of(element, "The request");
    }

    private static JsonFields of(JsonElement element, String where) {
        if (element == null || !element.isJsonObject()) {
            throw new IllegalArgumentException(
                    where
                            + " is not a JSON object; send one, with Content-Type:"
                            + " application/json.");
        }
        return new JsonFields(element.getAsJsonObject(), where);
    }

    private static boolean isEmpty(JsonElement element) {
        return element == null
                || element.isJsonNull()
                || element.isJsonArray() && element.getAsJsonArray().isEmpty()
                || element.isJsonObject() && element.getAsJsonObject().isEmpty();
    }

    boolean has(String name) {
        known.add(name);
        return !isEmpty(object.get(name));
    }

    /** Whether a list or object is there that has nothing in it. */
    boolean isEmptyValue(String name) {
        JsonElement value = object.get(name);
        return value != null && !value.isJsonNull() && isEmpty(value);
    }

    /** The value, or null if there is none. */
    JsonElement element(String name) {
        return has(name) ? object.get(name) : null;
    }

    boolean bool(String name) {
        JsonElement value = element(name);
        if (value == null) {
            return false;
        }
        if (!value.isJsonPrimitive() || !value.getAsJsonPrimitive().isBoolean()) {
            throw wrong(name, value, "true or false");
        }
        return value.getAsBoolean();
    }

    /** The text, or null if there is none. */
    String string(String name) {
        JsonElement value = element(name);
        if (value != null && !isString(value)) {
            throw wrong(name, value, "a string");
        }
        return value == null ? null : value.getAsString();
    }

    /** A string or a list of strings; empty if there is none. */
    List<String> strings(String name) {
        JsonElement value = element(name);
        if (value == null) {
            return List.of();
        }
        JsonArray array = asArray(value);
        List<String> strings = new ArrayList<>();
        for (JsonElement each : array) {
            if (!isString(each)) {
                throw wrong(name, value, "a string or a list of strings");
            }
            strings.add(each.getAsString());
        }
        return strings;
    }

    private static JsonArray asArray(JsonElement value) {
        if (value.isJsonArray()) {
            return value.getAsJsonArray();
        }
        JsonArray array = new JsonArray();
        array.add(value);
        return array;
    }

    boolean isList(String name) {
        JsonElement value = object.get(name);
        return value != null && value.isJsonArray();
    }

    /** The object; without fields if there is none. */
    JsonFields object(String name) {
        JsonElement value = element(name);
        return value == null ? new JsonFields(new JsonObject(), name) : of(value, name);
    }

    List<JsonFields> objects(String name) {
        JsonElement value = element(name);
        if (value == null) {
            return List.of();
        }
        if (!value.isJsonArray()) {
            throw wrong(name, value, "a list of objects");
        }
        List<JsonFields> objects = new ArrayList<>();
        for (JsonElement each : value.getAsJsonArray()) {
            objects.add(of(each, name + "[" + objects.size() + "]"));
        }
        return objects;
    }

    /** Copies a setting, under the name that it has with us. */
    void copy(String name, String ours, Map<String, Object> target) {
        JsonElement value = element(name);
        if (value == null) {
            return;
        }
        if (!value.isJsonPrimitive()) {
            throw wrong(name, value, "a single value");
        }
        target.put(ours, value.getAsString());
    }

    void ignore(String... names) {
        known.addAll(List.of(names));
    }

    /** Refuses a field, whatever it says. */
    void refuse(String name, String reason) {
        if (has(name)) {
            throw new IllegalArgumentException(name + " " + reason);
        }
    }

    /** Refuses a field that says anything else than what is done anyway. */
    void requireNeutral(String name, Object neutral) {
        JsonElement value = element(name);
        if (value == null) {
            return;
        }
        if (!value.isJsonPrimitive() || !equal(value.getAsJsonPrimitive(), neutral)) {
            throw new IllegalArgumentException(
                    name + " " + shown(value) + " is not supported; leave it out.");
        }
    }

    private static boolean equal(JsonPrimitive value, Object neutral) {
        return neutral instanceof Number number && value.isNumber()
                ? value.getAsDouble() == number.doubleValue()
                : value.getAsString().equals(neutral.toString());
    }

    void requireNothingElse() {
        for (String name : object.keySet()) {
            if (!known.contains(name) && !isEmpty(object.get(name))) {
                throw new IllegalArgumentException(
                        where
                                + " has the field '"
                                + shown(name)
                                + "', which has no effect here; leave it out. Known fields: "
                                + String.join(", ", known)
                                + ".");
            }
        }
    }

    private static boolean isString(JsonElement value) {
        return value.isJsonPrimitive() && value.getAsJsonPrimitive().isString();
    }

    private static IllegalArgumentException wrong(String name, JsonElement value, String allowed) {
        return new IllegalArgumentException(
                name + " is " + shown(value) + "; allowed: " + allowed + ".");
    }

    /** Enough of a value to know it again. */
    private static String shown(Object value) {
        String text = value.toString();
        return text.length() <= 80 ? text : text.substring(0, 77) + "...";
    }
}
