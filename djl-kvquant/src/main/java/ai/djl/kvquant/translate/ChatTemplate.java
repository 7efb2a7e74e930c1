/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import com.hubspot.jinjava.interpret.RenderResult;
import com.hubspot.jinjava.interpret.TemplateError;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Clock;
import java.time.ZonedDateTime;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;

/**
 * The chat template that comes with a model: turns a conversation into the text of a prompt.
 *
 * <p>Templates are Jinja2, rendered by Jinjava as HuggingFace's {@code apply_chat_template} renders
 * them: blocks trimmed, {@code raise_exception}, {@code strftime_now} and {@code tojson} present,
 * special tokens of the tokenizer as variables. Where Jinjava means something else than Jinja2
 * (operators, truth of strings, loops, string methods), {@link TemplateEngine} puts it right.
 *
 * <p>The rendered text has its special tokens already: tokenize it without adding any. Immutable
 * and thread-safe.
 */
public final class ChatTemplate {

    private static final TemplateEngine ENGINE = new TemplateEngine();

    /** What lstrip_blocks drops: Jinjava would drop blanks in front of any block. */
    private static final Pattern INDENT =
            Pattern.compile("^[ \\t]+(?=\\{[%#](?!\\+))", Pattern.MULTILINE | Pattern.UNIX_LINES);

    private final String template;
    private final Map<String, String> specialTokens;
    private final Clock clock;

    /**
     * Creates a template from its text.
     *
     * @param template the Jinja2 template
     * @param specialTokens the special tokens by the names that templates use, such as {@code
     *     bos_token} and {@code eos_token}
     */
    public ChatTemplate(String template, Map<String, String> specialTokens) {
        this(template, specialTokens, Clock.systemDefaultZone());
    }

    ChatTemplate(String template, Map<String, String> specialTokens, Clock clock) {
        this.template = normalize(template);
        this.specialTokens = Map.copyOf(specialTokens);
        this.clock = clock;
    }

    /**
     * Reads the template of a model.
     *
     * <p>It is in chat_template.jinja, in chat_template.json or in tokenizer_config.json, looked
     * for in this order; of several named ones the one called {@code default} is taken.
     *
     * @param directory the model directory
     * @return the template
     * @throws IOException if there is no chat template, or a file cannot be read
     */
    public static ChatTemplate fromModelDirectory(Path directory) throws IOException {
        return fromModelDirectory(directory, "default");
    }

    /**
     * Tells whether a model has a chat template.
     *
     * @param directory the model directory
     * @return whether one of its files has one
     * @throws IOException if a file cannot be read
     */
    public static boolean existsIn(Path directory) throws IOException {
        return new ChatTemplateFiles(directory).hasTemplate();
    }

    /**
     * Reads a named template of a model.
     *
     * @param directory the model directory
     * @param name the name, for example {@code tool_use}
     * @return the template
     * @throws IOException if there is no chat template of that name, or a file cannot be read
     */
    public static ChatTemplate fromModelDirectory(Path directory, String name) throws IOException {
        ChatTemplateFiles files = new ChatTemplateFiles(directory);
        return new ChatTemplate(files.template(name), files.specialTokens());
    }

    /**
     * Renders a conversation.
     *
     * @param messages the messages, oldest first
     * @param addGenerationPrompt whether the text ends with the beginning of the assistant's answer
     * @return the text of the prompt, special tokens included
     * @throws ChatTemplateException if the template refuses the messages or cannot be rendered
     */
    public String render(List<ChatMessage> messages, boolean addGenerationPrompt) {
        return render(messages, addGenerationPrompt, Map.of());
    }

    /**
     * Renders a conversation with further variables that the template knows, such as {@code tools}.
     *
     * @param messages the messages, oldest first
     * @param addGenerationPrompt whether the text ends with the beginning of the assistant's answer
     * @param variables further variables: strings, numbers, booleans, and lists and maps of these
     * @return the text of the prompt, special tokens included
     * @throws ChatTemplateException if the template refuses the messages or cannot be rendered
     */
    public String render(
            List<ChatMessage> messages, boolean addGenerationPrompt, Map<String, ?> variables) {
        Map<String, Object> context = new HashMap<>(specialTokens);
        List<Map<String, Object>> list = new ArrayList<>();
        for (ChatMessage message : messages) {
            Map<String, Object> map = new LinkedHashMap<>();
            map.put("role", message.role());
            map.put("content", message.content());
            list.add(map);
        }
        context.put("messages", list);
        context.put("add_generation_prompt", addGenerationPrompt);
        context.putAll(variables);
        context.put(TemplateFunctions.NOW, ZonedDateTime.now(clock));
        // Templates ask whether the functions are defined, and Jinjava looks among variables.
        context.put("strftime_now", true);
        context.put("raise_exception", true);
        RenderResult result = ENGINE.renderForResult(template, context);
        if (result.hasErrors()) {
            throw new ChatTemplateException(describe(result.getErrors().get(0)));
        }
        return result.getOutput();
    }

    private static String describe(TemplateError error) {
        String message = error.getMessage();
        for (Throwable t = error.getException(); t != null; t = t.getCause()) {
            if (t instanceof TemplateFunctions.Refusal) {
                return "The chat template refuses the messages: " + t.getMessage();
            }
            if (t instanceof ChatTemplateException) {
                message = t.getMessage();
            }
        }
        return "The chat template cannot be rendered (line "
                + error.getLineno()
                + "): "
                + String.valueOf(message).strip().replaceAll("\\s+", " ");
    }

    /**
     * Does what Jinja2 does with a template's text: LF line ends, one last line end dropped, no
     * blanks between the start of a line and a block. The slice that turns a list round is
     * rewritten for Jinjava.
     */
    private static String normalize(String template) {
        String text = template.replace("\r\n", "\n").replace('\r', '\n');
        text = INDENT.matcher(text).replaceAll("");
        text = text.replace("[::-1]", "." + TemplateMethods.REVERSED + "()");
        return text.endsWith("\n") ? text.substring(0, text.length() - 1) : text;
    }
}
