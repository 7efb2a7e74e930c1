/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples.programs;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.generate.TokenStream;
import ai.djl.kvquant.translate.ChatMessage;
import ai.djl.kvquant.translate.ChatTemplate;
import ai.djl.kvquant.translate.KvQuantTranslatorFactory;
import ai.djl.kvquant.translate.Tokenizers;
import ai.djl.ndarray.NDList;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.Reader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** A conversation whose answers appear token by token; earlier turns stay in the KV cache. */
public final class ChatStream {

    private ChatStream() {}

    /**
     * Runs the example.
     *
     * @param args the model directory
     * @throws Exception if the model can not be loaded
     */
    public static void main(String[] args) throws Exception {
        run(Path.of(args[0]), new InputStreamReader(System.in, StandardCharsets.UTF_8), System.out);
    }

    /**
     * Answers each line as a user's message, until there is none.
     *
     * @param model a HuggingFace directory with a chat template
     * @param in the messages
     * @param out where the answers go
     * @throws Exception if the model can not be loaded
     */
    public static void run(Path model, Reader in, PrintStream out) throws Exception {
        Criteria<NDList, NDList> criteria =
                Criteria.builder()
                        .setTypes(NDList.class, NDList.class)
                        .optModelPath(model)
                        .optEngine("KvQuant")
                        .optTranslatorFactory(new KvQuantTranslatorFactory())
                        .optOption("kv_cache_dtype", "int2")
                        .build();
        GenerationConfig config =
                GenerationConfig.fromModelDirectory(model).toBuilder().optMaxNewTokens(256).build();
        ChatTemplate template = ChatTemplate.fromModelDirectory(model);
        try (ZooModel<NDList, NDList> loaded = criteria.loadModel();
                HuggingFaceTokenizer tokenizer = Tokenizers.load(model)) {
            Generator generator =
                    new Generator(((KvQuantBlock) loaded.getBlock()).languageModel(), tokenizer);
            List<ChatMessage> messages = new ArrayList<>();
            for (String line : (Iterable<String>) new BufferedReader(in).lines()::iterator) {
                messages.add(new ChatMessage("user", line));
                int[] prompt = generator.encode(template.render(messages, true), false);
                messages.add(new ChatMessage("assistant", answer(generator, prompt, config, out)));
            }
        }
    }

    private static String answer(
            Generator generator, int[] prompt, GenerationConfig config, PrintStream out) {
        try (TokenStream tokens = generator.stream(prompt, config)) {
            while (tokens.hasNext()) {
                out.print(tokens.next().text());
                out.flush();
            }
            out.println(tokens.remainder());
            return tokens.result().text();
        }
    }
}
