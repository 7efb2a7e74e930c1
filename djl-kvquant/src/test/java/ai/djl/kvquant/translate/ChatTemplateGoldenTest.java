/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.Gson;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.charset.StandardCharsets;
import java.time.Clock;
import java.time.Instant;
import java.time.ZoneOffset;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/**
 * Renders what src/test/python/chat_template_golden.py rendered with Python's jinja2, set up as
 * HuggingFace transformers does it, and compares. What fails there must fail here.
 */
class ChatTemplateGoldenTest {

    private static final Clock NOW =
            Clock.fixed(Instant.parse("2024-07-06T10:05:03Z"), ZoneOffset.UTC);

    @TestFactory
    Stream<DynamicTest> rendersAsJinja2() throws IOException {
        return rows("chat-template-golden.json")
                .map(row -> DynamicTest.dynamicTest(name(row), () -> check(row)));
    }

    private static void check(JsonObject row) {
        ChatTemplate template = new ChatTemplate(row.get("template").getAsString(), Map.of(), NOW);
        Map<String, ?> variables =
                new Gson().<Map<String, ?>>fromJson(row.get("variables"), Map.class);
        JsonElement expected = row.get("expected");
        if (expected.isJsonObject()) {
            assertThrows(
                    ChatTemplateException.class, () -> template.render(List.of(), true, variables));
        } else {
            assertEquals(expected.getAsString(), template.render(List.of(), true, variables));
        }
    }

    private static String name(JsonObject row) {
        return row.get("name").getAsString();
    }

    private static Stream<JsonObject> rows(String file) throws IOException {
        try (Reader reader =
                new InputStreamReader(
                        ChatTemplateGoldenTest.class.getResourceAsStream(file),
                        StandardCharsets.UTF_8)) {
            List<JsonObject> rows =
                    StreamSupport.stream(
                                    JsonParser.parseReader(reader).getAsJsonArray().spliterator(),
                                    false)
                            .map(JsonElement::getAsJsonObject)
                            .toList();
            assertTrue(rows.size() > 100, "the golden file has too few rows");
            return rows.stream();
        }
    }
}
