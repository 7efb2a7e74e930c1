/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.math.BigDecimal;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import java.util.function.Function;

/** Reads generation settings from a model directory and from maps of named values. */
final class GenerationConfigReader {

    private static final String FILE = "generation_config.json";
    private static final String FALLBACK = "config.json";

    private GenerationConfigReader() {}

    static GenerationConfig read(Path directory) throws IOException {
        Path file = directory.resolve(FILE);
        Path fallback = directory.resolve(FALLBACK);
        if (!Files.isRegularFile(file) && !Files.isRegularFile(fallback)) {
            throw new NoSuchFileException(
                    directory.toString(),
                    null,
                    "it has neither "
                            + FILE
                            + " nor "
                            + FALLBACK
                            + "; give the directory of a HuggingFace checkpoint");
        }
        Map<String, Object> values = Files.isRegularFile(file) ? parse(file) : Map.of();
        GenerationConfig.Builder builder = GenerationConfig.builder();
        apply(builder, known(values, FILE_KEYS), file);
        if (values.get("eos_token_id") == null && Files.isRegularFile(fallback)) {
            apply(builder, known(parse(fallback), List.of("eos_token_id")), fallback);
        }
        Object temperature = values.get("temperature");
        boolean zero = temperature instanceof Number number && number.doubleValue() == 0;
        return builder.sampleOnlyIf(Boolean.TRUE.equals(values.get("do_sample")) && !zero).build();
    }

    private static final List<String> FILE_KEYS =
            List.of(
                    "eos_token_id",
                    "temperature",
                    "top_k",
                    "top_p",
                    "min_p",
                    "repetition_penalty",
                    "do_sample",
                    "max_new_tokens");

    private static void apply(
            GenerationConfig.Builder builder, Map<String, Object> values, Path file) {
        try {
            configure(builder, values);
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException(file + ": " + e.getMessage(), e);
        }
    }

    static void configure(GenerationConfig.Builder builder, Map<String, ?> values) {
        set(values, "max_new_tokens", Values::integer, builder::optMaxNewTokens);
        set(values, "top_k", Values::integer, builder::optTopK);
        set(values, "top_p", Values::decimal, builder::optTopP);
        set(values, "min_p", Values::decimal, builder::optMinP);
        set(values, "temperature", Values::decimal, builder::optTemperature);
        set(values, "do_sample", Values::bool, builder::optDoSample);
        set(values, "repetition_penalty", Values::decimal, builder::optRepetitionPenalty);
        set(values, "seed", Values::whole, builder::optSeed);
        set(values, "eos_token_id", Values::integers, builder::optEosTokenIds);
        set(values, "ignore_eos", Values::bool, builder::optIgnoreEos);
        set(values, "stop", Values::strings, builder::optStopStrings);
        set(values, "stop_strings", Values::strings, builder::optStopStrings);
        set(values, "logprobs", Values::bool, builder::optLogProbs);
        set(values, "top_logprobs", Values::integer, builder::optTopLogProbs);
    }

    private static <T> void set(
            Map<String, ?> values, String key, Function<Object, T> reader, Consumer<T> setter) {
        Object value = values.get(key);
        if (value == null) {
            return;
        }
        T read;
        try {
            read = reader.apply(value);
        } catch (ArithmeticException | IllegalArgumentException e) {
            throw new IllegalArgumentException(
                    key + " '" + value + "' is not valid: " + e.getMessage() + ".", e);
        }
        setter.accept(read);
    }

    private static Map<String, Object> known(Map<String, Object> values, List<String> keys) {
        Map<String, Object> known = new LinkedHashMap<>(values);
        known.keySet().retainAll(keys);
        return known;
    }

    private static Map<String, Object> parse(Path file) throws IOException {
        try {
            JsonObject json = JsonParser.parseString(Files.readString(file)).getAsJsonObject();
            Map<String, Object> values = new LinkedHashMap<>();
            json.entrySet().forEach(e -> values.put(e.getKey(), toJava(e.getValue())));
            return values;
        } catch (JsonParseException | IllegalStateException e) {
            throw new IOException(
                    file + " is not a JSON object (" + e.getMessage() + "); download it again.", e);
        }
    }

    private static Object toJava(JsonElement element) {
        if (element.isJsonArray()) {
            List<Object> list = new ArrayList<>();
            element.getAsJsonArray().forEach(e -> list.add(toJava(e)));
            return list;
        }
        if (element.isJsonPrimitive()) {
            var primitive = element.getAsJsonPrimitive();
            return primitive.isBoolean()
                    ? primitive.getAsBoolean()
                    : primitive.isNumber() ? primitive.getAsBigDecimal() : primitive.getAsString();
        }
        return element.isJsonNull() ? null : element.toString();
    }

    /** Converts values that are of their type, or strings of it. */
    private static final class Values {

        static long whole(Object value) {
            try {
                return new BigDecimal(value.toString().trim()).longValueExact();
            } catch (NumberFormatException | ArithmeticException e) {
                throw new IllegalArgumentException("it must be a whole number", e);
            }
        }

        static int integer(Object value) {
            long whole = whole(value);
            if (whole != (int) whole) {
                throw new IllegalArgumentException("it must be at most " + Integer.MAX_VALUE);
            }
            return (int) whole;
        }

        static float decimal(Object value) {
            try {
                return Float.parseFloat(value.toString().trim());
            } catch (NumberFormatException e) {
                throw new IllegalArgumentException("it must be a number", e);
            }
        }

        static boolean bool(Object value) {
            return switch (value.toString().trim().toLowerCase(java.util.Locale.ROOT)) {
                case "true" -> true;
                case "false" -> false;
                default -> throw new IllegalArgumentException("it must be true or false");
            };
        }

        static List<Integer> integers(Object value) {
            return value instanceof Iterable<?> list
                    ? each(list, Values::integer)
                    : List.of(integer(value));
        }

        static List<String> strings(Object value) {
            return value instanceof Iterable<?> list
                    ? each(list, String::valueOf)
                    : List.of(value.toString());
        }

        private static <T> List<T> each(Iterable<?> list, Function<Object, T> reader) {
            List<T> result = new ArrayList<>();
            list.forEach(e -> result.add(reader.apply(e)));
            return result;
        }
    }
}
