/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.Model;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.Generator;
import ai.djl.ndarray.NDList;
import ai.djl.translate.Batchifier;
import ai.djl.translate.Translator;
import ai.djl.translate.TranslatorContext;
import java.io.IOException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Generates text from prompts; those of a batch, and of all predictors of the model, are decoded
 * together.
 *
 * <p>Arguments of the criteria are those of {@link GenerationConfig.Builder#configure}, over the
 * model's generation_config.json, and {@code apply_chat_template}: whether a prompt is wrapped as a
 * user's message, by default if the model has a chat template.
 */
final class TextTranslator implements Translator<String, String> {

    private static final String PROMPTS = "prompts";

    private final Generator generator;
    private final GenerationConfig config;
    private final ChatTemplate chatTemplate;

    private TextTranslator(
            Generator generator, GenerationConfig config, ChatTemplate chatTemplate) {
        this.generator = generator;
        this.config = config;
        this.chatTemplate = chatTemplate;
    }

    static TextTranslator create(Model model, Map<String, ?> arguments) throws IOException {
        if (!(model.getBlock() instanceof KvQuantBlock block)) {
            throw new IllegalArgumentException(
                    "KvQuantTranslatorFactory needs a model of the engine KvQuant, but "
                            + model.getName()
                            + " is of another; add optEngine(\"KvQuant\").");
        }
        Map<String, Object> settings = settings(model, arguments);
        GenerationConfig config =
                GenerationConfig.fromModelDirectory(model.getModelPath()).toBuilder()
                        .configure(settings)
                        .build();
        ChatTemplate template = template(model, settings);
        HuggingFaceTokenizer tokenizer = Tokenizers.load(model.getModelPath());
        model.getNDManager().attachInternal(tokenizer.getUid(), tokenizer);
        return new TextTranslator(new Generator(block.scheduler(), tokenizer), config, template);
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
        Object wanted = settings.get("apply_chat_template");
        String value = wanted == null ? "auto" : wanted.toString();
        boolean wrap =
                switch (value) {
                    case "false" -> false;
                    case "true" -> true;
                    case "auto" -> ChatTemplate.existsIn(model.getModelPath());
                    default ->
                            throw new IllegalArgumentException(
                                    "apply_chat_template is '"
                                            + value
                                            + "'; allowed: true, false, auto.");
                };
        return wrap ? tried(model) : null;
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

    /** {@inheritDoc} */
    @Override
    public Batchifier getBatchifier() {
        // Not null: DJL then hands over a whole batch of prompts.
        return Batchifier.STACK;
    }

    /** {@inheritDoc} */
    @Override
    public NDList processInput(TranslatorContext ctx, String input) {
        return batchProcessInput(ctx, List.of(input));
    }

    /** {@inheritDoc} */
    @Override
    public String processOutput(TranslatorContext ctx, NDList list) {
        return batchProcessOutput(ctx, list).get(0);
    }

    /** {@inheritDoc} */
    @Override
    public NDList batchProcessInput(TranslatorContext ctx, List<String> inputs) {
        List<int[]> prompts = new ArrayList<>();
        for (String input : inputs) {
            prompts.add(encode(input));
        }
        ctx.setAttachment(PROMPTS, prompts);
        return new NDList();
    }

    private int[] encode(String prompt) {
        if (chatTemplate == null) {
            return generator.encode(prompt, true);
        }
        String chat = chatTemplate.render(List.of(new ChatMessage("user", prompt)), true);
        return generator.encode(chat, false);
    }

    /** {@inheritDoc} */
    @Override
    @SuppressWarnings("unchecked")
    public List<String> batchProcessOutput(TranslatorContext ctx, NDList list) {
        List<int[]> prompts = (List<int[]>) ctx.getAttachment(PROMPTS);
        return generator.generate(prompts, config).stream().map(GenerationResult::text).toList();
    }
}
