/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples.programs;

import ai.djl.inference.Predictor;
import ai.djl.kvquant.translate.KvQuantTranslatorFactory;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import java.io.PrintStream;
import java.nio.file.Path;

/** Answers a prompt: DJL's Criteria, with one line that chooses the KV cache. */
public final class Answer {

    private Answer() {}

    /**
     * Runs the example.
     *
     * @param args the model directory, the prompt, and optionally a kv_cache_dtype
     * @throws Exception if the model can not be loaded
     */
    public static void main(String[] args) throws Exception {
        String cache = args.length > 2 ? args[2] : "int2";
        run(
                Path.of(args[0]),
                args.length > 1 ? args[1] : "Why is the sky blue?",
                cache,
                System.out);
    }

    /**
     * Prints the answer to a prompt.
     *
     * @param model a HuggingFace directory: config.json, *.safetensors, tokenizer.json
     * @param prompt the prompt
     * @param cache the kv_cache_dtype
     * @param out where the answer goes
     * @throws Exception if the model can not be loaded
     */
    public static void run(Path model, String prompt, String cache, PrintStream out)
            throws Exception {
        Criteria<String, String> criteria =
                Criteria.builder()
                        .setTypes(String.class, String.class)
                        .optModelPath(model)
                        .optEngine("KvQuant")
                        .optTranslatorFactory(new KvQuantTranslatorFactory())
                        .optOption("kv_cache_dtype", cache)
                        .optArgument("max_new_tokens", 128)
                        .build();
        try (ZooModel<String, String> loaded = criteria.loadModel();
                Predictor<String, String> predictor = loaded.newPredictor()) {
            out.println(predictor.predict(prompt));
        }
    }
}
