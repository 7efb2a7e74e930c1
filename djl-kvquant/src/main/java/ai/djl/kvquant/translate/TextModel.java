/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.Model;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.cache.OptionNames;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.Generator;
import java.io.IOException;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * What a translator needs of a loaded model to generate text.
 *
 * @param generator joins the model's running batch
 * @param tokenizer closed with the model
 * @param config how to generate: generation_config.json, and the options over it
 * @param template the chat template, or null if there is none or it is not to be used
 * @param settings the model's options and the arguments
 */
record TextModel(
        Generator generator,
        HuggingFaceTokenizer tokenizer,
        GenerationConfig config,
        ChatTemplate template,
        Map<String, Object> settings) {

    private static final String APPLY_TEMPLATE = "apply_chat_template";
    private static final OptionNames NAMES = new OptionNames(List.of(APPLY_TEMPLATE));

    static TextModel of(Model model, Map<String, ?> arguments) throws IOException {
        KvQuantBlock block = CheckpointBlock.of(model);
        Map<String, Object> settings = settings(model, arguments);
        NAMES.requireSpelling(settings.keySet());
        GenerationConfig config =
                GenerationConfig.fromModelDirectory(model.getModelPath()).toBuilder()
                        .configure(settings)
                        .build();
        ChatTemplate template = template(model, settings);
        HuggingFaceTokenizer tokenizer = Tokenizers.load(model.getModelPath());
        model.getNDManager().attachInternal(tokenizer.getUid(), tokenizer);
        Generator generator = new Generator(block.scheduler(), tokenizer);
        return new TextModel(generator, tokenizer, config, template, settings);
    }

    /** The model's options as text, and the arguments as they are unless an option differs. */
    private static Map<String, Object> settings(Model model, Map<String, ?> arguments) {
        Map<String, Object> settings = new HashMap<>(model.getProperties());
        arguments.forEach(
                (name, value) -> {
                    Object option = settings.get(name);
                    if (option == null || option.equals(String.valueOf(value))) {
                        settings.put(name, value);
                    }
                });
        return settings;
    }

    private static ChatTemplate template(Model model, Map<String, ?> settings) throws IOException {
        String value = applyTemplate(settings);
        boolean wanted =
                switch (value) {
                    case "false" -> false;
                    case "true" -> true;
                    case "auto" -> ChatTemplate.existsIn(model.getModelPath());
                    default ->
                            throw new IllegalArgumentException(
                                    APPLY_TEMPLATE
                                            + " is '"
                                            + value
                                            + "'; allowed: true, false, auto.");
                };
        return wanted ? tried(model) : null;
    }

    private static String applyTemplate(Map<String, ?> settings) {
        Object value = settings.get(APPLY_TEMPLATE);
        return value == null ? "auto" : value.toString();
    }

    /** A template that can not render a user's message fails now, not at the first request. */
    private static ChatTemplate tried(Model model) throws IOException {
        ChatTemplate template = ChatTemplate.fromModelDirectory(model.getModelPath());
        try {
            template.render(List.of(new ChatMessage("user", "Hello")), true);
        } catch (ChatTemplateException e) {
            throw new IOException(
                    model.getModelPath()
                            + ": "
                            + e.getMessage()
                            + " Mend the template, or set apply_chat_template=false.",
                    e);
        }
        return template;
    }

    /** Whether even plain texts are to be a user's messages. */
    boolean appliesTemplateAlways() {
        return "true".equals(applyTemplate(settings));
    }

    /** A user's message if there is a template, else plain text. */
    int[] encode(String prompt) {
        return template == null
                ? encodePlain(prompt)
                : encode(List.of(new ChatMessage("user", prompt)));
    }

    int[] encodePlain(String prompt) {
        return generator.encode(prompt, true);
    }

    int[] encode(List<ChatMessage> messages) {
        return generator.encode(template.render(messages, true), false);
    }
}
