/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples.programs;

import ai.djl.inference.Predictor;
import ai.djl.kvquant.translate.KvQuantTranslatorFactory;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import java.io.PrintStream;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;

/** Answers several prompts of any lengths together: each step decodes one token of all of them. */
public final class PromptBatch {

    private static final List<String> PROMPTS =
            List.of("What is the capital of France?", "Name three colours.", "What is 2 plus 3?");

    private PromptBatch() {}

    /**
     * Runs the example.
     *
     * @param args the model directory and the prompts
     * @throws Exception if the model can not be loaded
     */
    public static void main(String[] args) throws Exception {
        List<String> prompts = Arrays.asList(args).subList(1, args.length);
        run(Path.of(args[0]), prompts.isEmpty() ? PROMPTS : prompts, System.out);
    }

    /**
     * Prints each prompt with its answer.
     *
     * @param model a HuggingFace directory
     * @param prompts the prompts
     * @param out where the answers go
     * @throws Exception if the model can not be loaded
     */
    public static void run(Path model, List<String> prompts, PrintStream out) throws Exception {
        Criteria<String, String> criteria =
                Criteria.builder()
                        .setTypes(String.class, String.class)
                        .optModelPath(model)
                        .optEngine("KvQuant")
                        .optTranslatorFactory(new KvQuantTranslatorFactory())
                        .optOption("kv_cache_dtype", "int2")
                        .optArgument("max_new_tokens", 64)
                        .build();
        try (ZooModel<String, String> loaded = criteria.loadModel();
                Predictor<String, String> predictor = loaded.newPredictor()) {
            List<String> answers = predictor.batchPredict(prompts);
            for (int i = 0; i < prompts.size(); ++i) {
                out.printf("> %s%n%s%n%n", prompts.get(i), answers.get(i));
            }
        }
    }
}
