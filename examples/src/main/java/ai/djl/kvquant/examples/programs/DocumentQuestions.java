/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples.programs;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.kvquant.translate.ChatMessage;
import ai.djl.kvquant.translate.ChatTemplate;
import ai.djl.kvquant.translate.KvQuantTranslatorFactory;
import ai.djl.kvquant.translate.Tokenizers;
import ai.djl.ndarray.NDList;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import java.io.PrintStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;

/**
 * Asks several questions about one document. The document is computed once; what its cache holds is
 * then shared by all questions, each of which adds pages of its own (a fork).
 */
public final class DocumentQuestions {

    private DocumentQuestions() {}

    /**
     * Runs the example.
     *
     * @param args the model directory, a text file, and questions
     * @throws Exception if the model can not be loaded
     */
    public static void main(String[] args) throws Exception {
        if (args.length < 3) {
            throw new IllegalArgumentException("Give a text file and one or more questions.");
        }
        List<String> questions = Arrays.asList(args).subList(2, args.length);
        run(Path.of(args[0]), Files.readString(Path.of(args[1])), questions, System.out);
    }

    /**
     * Prints each question with its answer.
     *
     * @param model a HuggingFace directory with a chat template
     * @param document the document
     * @param questions the questions
     * @param out where the answers go
     * @throws Exception if the model can not be loaded
     */
    public static void run(Path model, String document, List<String> questions, PrintStream out)
            throws Exception {
        Criteria<NDList, NDList> criteria =
                Criteria.builder()
                        .setTypes(NDList.class, NDList.class)
                        .optModelPath(model)
                        .optEngine("KvQuant")
                        .optTranslatorFactory(new KvQuantTranslatorFactory())
                        .optOption("kv_cache_dtype", "int2")
                        .build();
        try (ZooModel<NDList, NDList> loaded = criteria.loadModel();
                HuggingFaceTokenizer tokenizer = Tokenizers.load(model)) {
            LanguageModel languageModel = ((KvQuantBlock) loaded.getBlock()).languageModel();
            Generator generator = new Generator(languageModel, tokenizer);
            ChatTemplate template = ChatTemplate.fromModelDirectory(model);
            List<int[]> prompts =
                    questions.stream()
                            .map(question -> render(template, document, question))
                            .map(text -> generator.encode(text, false))
                            .toList();
            compute(commonBeginning(prompts), languageModel, out);
            GenerationConfig config =
                    GenerationConfig.fromModelDirectory(model).toBuilder()
                            .optMaxNewTokens(64)
                            .build();
            List<GenerationResult> answers = generator.generate(prompts, config);
            for (int i = 0; i < answers.size(); ++i) {
                GenerationResult answer = answers.get(i);
                out.printf("> %s%n%s%n", questions.get(i), answer.text());
                out.printf("(first token after %d ms)%n", answer.timeToFirstToken().toMillis());
            }
        }
    }

    private static String render(ChatTemplate template, String document, String question) {
        List<ChatMessage> messages =
                List.of(new ChatMessage("user", document.strip() + "\n\n" + question));
        return template.render(messages, true);
    }

    /** Closed batches leave their cache to prompts that begin alike. */
    private static void compute(int[] document, LanguageModel model, PrintStream out) {
        long start = System.nanoTime();
        try (DecodingBatch batch = model.prefill(List.of(document))) {
            out.printf(
                    "(%d tokens of the document in %d ms, %d bytes of %s)%n",
                    batch.length(0),
                    (System.nanoTime() - start) / 1_000_000,
                    batch.usage().bytes(),
                    batch.usage().dtype());
        }
    }

    /** What all prompts begin with; of a single one all. */
    private static int[] commonBeginning(List<int[]> prompts) {
        int[] common = prompts.get(0);
        for (int[] prompt : prompts) {
            int end = Arrays.mismatch(common, prompt);
            common = end < 0 ? common : Arrays.copyOf(common, end);
        }
        return common;
    }
}
