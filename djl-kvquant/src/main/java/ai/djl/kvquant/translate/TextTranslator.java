/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.Model;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.ndarray.NDList;
import ai.djl.translate.Batchifier;
import ai.djl.translate.Translator;
import ai.djl.translate.TranslatorContext;
import java.io.IOException;
import java.util.ArrayList;
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

    private final TextModel model;

    private TextTranslator(TextModel model) {
        this.model = model;
    }

    static TextTranslator create(Model model, Map<String, ?> arguments) throws IOException {
        return new TextTranslator(TextModel.of(model, arguments));
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
            prompts.add(model.encode(input));
        }
        ctx.setAttachment(PROMPTS, prompts);
        return new NDList();
    }

    /** {@inheritDoc} */
    @Override
    @SuppressWarnings("unchecked")
    public List<String> batchProcessOutput(TranslatorContext ctx, NDList list) {
        List<int[]> prompts = (List<int[]>) ctx.getAttachment(PROMPTS);
        return model.generator().generate(prompts, model.config()).stream()
                .map(GenerationResult::text)
                .toList();
    }
}
