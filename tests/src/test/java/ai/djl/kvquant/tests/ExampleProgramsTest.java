/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.examples.programs.Answer;
import ai.djl.kvquant.examples.programs.ChatStream;
import ai.djl.kvquant.examples.programs.DocumentQuestions;
import ai.djl.kvquant.examples.programs.PromptBatch;
import ai.djl.kvquant.examples.programs.ServedChat;
import ai.djl.ndarray.NDList;
import ai.djl.repository.zoo.ZooModel;
import com.google.gson.JsonObject;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.io.StringReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The example programs on a small checkpoint whose words are w0 to w255. */
class ExampleProgramsTest {

    /** Messages one after the other, with w1 before an answer. */
    private static final String TEMPLATE =
            "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}w1";

    @TempDir private static Path directory;

    @BeforeAll
    static void model() throws Exception {
        JsonObject config = new JsonObject();
        config.addProperty("chat_template", TEMPLATE);
        SmallModel.in(directory)
                .tokenizer()
                .write("tokenizer_config.json", config.toString())
                .write(
                        "serving.properties",
                        "engine=KvQuant\noption.kv_cache_dtype=int2\n"
                                + "translatorFactory=ai.djl.kvquant.translate.KvQuantTranslatorFactory\n");
    }

    /** What an example does. */
    private interface Example {
        void run(PrintStream out) throws Exception;
    }

    private static String run(Example example) throws Exception {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        try (PrintStream out = new PrintStream(bytes, true, StandardCharsets.UTF_8)) {
            example.run(out);
        }
        return bytes.toString(StandardCharsets.UTF_8);
    }

    /** The most probable words after a prompt of words, by the model without a quantized cache. */
    private static List<String> expected(int count, int... prompt) throws Exception {
        try (ZooModel<NDList, NDList> model =
                SmallModel.in(directory).load(Map.of("kv_cache_dtype", "auto"))) {
            int[] tokens = SmallModel.greedy(SmallModel.languageModel(model), prompt, count);
            return Arrays.stream(tokens).mapToObj(token -> "w" + token).toList();
        }
    }

    /** Short sequences lie in the exact window, so that the cache changes nothing. */
    private static void assertBegins(List<String> expected, String answer) {
        List<String> words = List.of(answer.strip().split(" +"));
        assertTrue(words.size() >= expected.size(), answer);
        assertEquals(expected, words.subList(0, expected.size()));
    }

    @Test
    void answer() throws Exception {
        String text = run(out -> Answer.run(directory, "w5 w6 w7", "auto", out));
        assertBegins(expected(16, 5, 6, 7, 1), text);
        assertEquals(128, text.strip().split(" +").length);
    }

    @Test
    void chatKeepsWhatWasSaid() throws Exception {
        String text = run(out -> ChatStream.run(directory, new StringReader("w5 w6\nw9\n"), out));
        List<String> turns = text.lines().toList();
        assertEquals(2, turns.size());
        assertBegins(expected(16, 5, 6, 1), turns.get(0));
        // Without the first turn the answer would be another.
        assertFalse(turns.get(1).strip().startsWith(String.join(" ", expected(16, 9, 1))));
    }

    @Test
    void questionsShareTheDocument() throws Exception {
        int[] words = SmallModel.prompt(200, 3);
        String document =
                Arrays.stream(words).mapToObj(word -> "w" + word).collect(Collectors.joining(" "));
        String text =
                run(out -> DocumentQuestions.run(directory, document, List.of("w20", "w30"), out));
        Matcher computed = Pattern.compile("^\\((\\d+) tokens of the document").matcher(text);
        assertTrue(computed.find(), text);
        assertEquals(words.length, Integer.parseInt(computed.group(1)));
        assertTrue(text.contains("> w20"), text);
        assertTrue(text.contains("> w30"), text);
        assertTrue(text.contains(" bytes of int2)"), text);
    }

    @Test
    void promptsOfABatchAreAnsweredInTheirOrder() throws Exception {
        String text = run(out -> PromptBatch.run(directory, List.of("w5", "w6 w7 w8"), out));
        String[] parts = text.split("> ");
        assertEquals(3, parts.length, text);
        assertBegins(expected(16, 5, 1), parts[1].substring("w5".length()));
        assertBegins(expected(16, 6, 7, 8, 1), parts[2].substring("w6 w7 w8".length()));
    }

    @Test
    void clientOfAServer() throws Exception {
        try (ServedModel served = ServedModel.load(directory);
                HttpBridge bridge = new HttpBridge(served)) {
            String text = run(out -> ServedChat.run(bridge.url(), "w5 w6", out));
            assertBegins(expected(16, 5, 6, 1), text);
            // The prompt does not fit into the model's context of 512 tokens.
            IOException error =
                    assertThrows(
                            IOException.class,
                            () -> run(out -> ServedChat.run(bridge.url(), "w5 ".repeat(600), out)));
            assertTrue(error.getMessage().contains("status 400"), error.getMessage());
        }
    }
}
