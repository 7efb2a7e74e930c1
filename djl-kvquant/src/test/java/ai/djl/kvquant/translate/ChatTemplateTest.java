/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.Gson;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ChatTemplateTest {

    private static final List<ChatMessage> HELLO = List.of(new ChatMessage("user", "Hello"));

    @TempDir private Path directory;

    private void write(String name, Object json) throws IOException {
        Files.writeString(directory.resolve(name), new Gson().toJson(json));
    }

    @Test
    void readsTokenizerConfig() throws IOException {
        write(
                "tokenizer_config.json",
                Map.of(
                        "chat_template",
                        "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ unk_token }}",
                        "bos_token",
                        Map.of("content", "<s>", "lstrip", false),
                        "eos_token",
                        "</s>"));
        write("special_tokens_map.json", Map.of("eos_token", "old", "unk_token", "<unk>"));
        assertEquals(
                "<s>Hello</s><unk>",
                ChatTemplate.fromModelDirectory(directory).render(HELLO, true));
    }

    /** Jinja2 with trim_blocks and lstrip_blocks gives the same. */
    @Test
    void dropsBlanksInFrontOfBlocksAtLineStartsOnly() {
        Map<String, String> rendered =
                Map.of(
                        "{% for m in messages %}a {{ m.content }} {% endfor %}b", "a Hello b",
                        "a {% if true %}b {% endif %} c", "a b  c",
                        "  {% if true %}\n    x\n \t{% endif %}y", "    x\ny",
                        "a\n  {# c #}\n  b {# d #} e", "a\n  b  e",
                        "{{ 'a' }} {% if true %} {% endif %}|\n   {{ 'b' }}", "a  |\n   b");
        rendered.forEach(
                (template, text) ->
                        assertEquals(
                                text,
                                new ChatTemplate(template, Map.of()).render(HELLO, true),
                                template));
    }

    @Test
    void readsNamedTemplates() throws IOException {
        write(
                "tokenizer_config.json",
                Map.of(
                        "chat_template",
                        List.of(
                                Map.of("name", "default", "template", "plain"),
                                Map.of("name", "rag", "template", "retrieved"))));
        assertEquals("plain", ChatTemplate.fromModelDirectory(directory).render(HELLO, true));
        assertEquals(
                "retrieved", ChatTemplate.fromModelDirectory(directory, "rag").render(HELLO, true));
        IOException e =
                assertThrows(
                        IOException.class,
                        () -> ChatTemplate.fromModelDirectory(directory, "tools"));
        assertTrue(
                e.getMessage()
                        .contains("no chat template named 'tools'; choose one of default, rag"),
                e.getMessage());
    }

    @Test
    void aFileOfItsOwnComesFirst() throws IOException {
        write("tokenizer_config.json", Map.of("chat_template", "old"));
        write("chat_template.json", Map.of("chat_template", "newer"));
        assertEquals("newer", ChatTemplate.fromModelDirectory(directory).render(HELLO, true));
        Files.writeString(directory.resolve("chat_template.jinja"), "newest\r\n{{ 1 }}\n");
        assertEquals("newest\n1", ChatTemplate.fromModelDirectory(directory).render(HELLO, true));
    }

    @Test
    void saysWhenThereIsNoTemplate() throws IOException {
        write("tokenizer_config.json", Map.of("bos_token", "<s>"));
        IOException e =
                assertThrows(IOException.class, () -> ChatTemplate.fromModelDirectory(directory));
        assertEquals(
                directory
                        + " has no chat template (chat_template.jinja, or chat_template in"
                        + " tokenizer_config.json); use an instruct model, or give the prompt as"
                        + " plain text (kvq generate --raw).",
                e.getMessage());
        Files.writeString(directory.resolve("tokenizer_config.json"), "{");
        IOException broken =
                assertThrows(IOException.class, () -> ChatTemplate.fromModelDirectory(directory));
        assertTrue(broken.getMessage().contains("is not a JSON object"), broken.getMessage());
    }

    @Test
    void theGenerationPromptIsOptional() {
        ChatTemplate template =
                new ChatTemplate("{% if add_generation_prompt %}A:{% endif %}", Map.of());
        assertEquals("A:", template.render(HELLO, true));
        assertEquals("", template.render(HELLO, false));
    }

    @Test
    void whatTheUserWritesIsNeverRun() {
        ChatTemplate template = new ChatTemplate("{{ messages[0].content }}", Map.of());
        String hostile = "{{ 7 * 7 }}{% raw %}{{ bos_token }}{# x #}\n <|im_end|> & <b>";
        assertEquals(hostile, template.render(List.of(new ChatMessage("user", hostile)), true));
    }

    @Test
    void anErrorIsOneSentence() {
        assertError(
                "{{ raise_exception('Roles must alternate!') }}",
                "The chat template refuses the messages: Roles must alternate!");
        assertError(
                "a\n{{ 'a'.format(1) }}",
                "The chat template cannot be rendered (line 2): the string method 'format' is not"
                        + " supported");
        assertError("{% for m in messages %}", "The chat template cannot be rendered (line 1): ");
        assertError("{{ messages[0 }}", "The chat template cannot be rendered (line 1): ");
        assertError("{{ nothing() }}", "The chat template cannot be rendered (line 1): ");
        assertError(
                "{{ 1 | nofilter }}",
                "The chat template cannot be rendered (line 1): the filter 'nofilter' is not"
                        + " known");
        assertError(
                "{% if 1 is notest %}{% endif %}",
                "The chat template cannot be rendered (line 1): the test 'notest' is not known");
        assertError("{{ messages", "The chat template cannot be rendered (line 1): Unclosed token");
        assertError(
                "{% endif %}", "The chat template cannot be rendered (line 1): Missing start tag");
    }

    private static void assertError(String text, String message) {
        ChatTemplate template = new ChatTemplate(text, Map.of());
        String actual =
                assertThrows(ChatTemplateException.class, () -> template.render(HELLO, true))
                        .getMessage();
        assertTrue(actual.startsWith(message), actual);
        assertFalse(actual.contains("\n"), actual);
    }
}
