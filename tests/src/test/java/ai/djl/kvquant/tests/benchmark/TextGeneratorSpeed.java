/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.benchmark;

import ai.djl.inference.Predictor;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.tests.DefaultModel;
import ai.djl.modality.nlp.generate.CausalLMOutput;
import ai.djl.modality.nlp.generate.SearchConfig;
import ai.djl.modality.nlp.generate.TextGenerator;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.pytorch.zoo.nlp.textgeneration.PtGptTranslatorFactory;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import ai.djl.translate.TranslateException;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import java.util.stream.Stream;

/**
 * Greedy search of the default model: DJL's TextGenerator with its own translator against our own
 * generation loop, with the same prompts and cache, in turns, so that both see the same machine.
 */
public final class TextGeneratorSpeed {

    private static final int PROMPT = 32;
    private static final int VOCABULARY = 49152;

    private final ZooModel<NDList, CausalLMOutput> model;
    private final Predictor<NDList, CausalLMOutput> predictor;
    private final int newTokens;

    private TextGeneratorSpeed(ZooModel<NDList, CausalLMOutput> model, int newTokens) {
        this.model = model;
        this.newTokens = newTokens;
        predictor = model.newPredictor();
    }

    /**
     * Runs rounds after one that warms up, and prints tokens a second and their ratio.
     *
     * @param args kv_cache_dtype, batch, new tokens and rounds; by default int2 4 256 3
     * @throws Exception if the model can not be loaded or fails
     */
    public static void main(String[] args) throws Exception {
        String cache = args.length > 0 ? args[0] : "int2";
        int batch = args.length > 1 ? Integer.parseInt(args[1]) : 4;
        int newTokens = args.length > 2 ? Integer.parseInt(args[2]) : 256;
        int rounds = args.length > 3 ? Integer.parseInt(args[3]) : 3;
        Criteria<NDList, CausalLMOutput> criteria =
                Criteria.builder()
                        .setTypes(NDList.class, CausalLMOutput.class)
                        .optModelPath(DefaultModel.directory())
                        .optEngine("KvQuant")
                        .optOption("kv_cache_dtype", cache)
                        .optOption("max_batch_size", Integer.toString(2 * batch))
                        .optTranslatorFactory(new PtGptTranslatorFactory())
                        .build();
        try (ZooModel<NDList, CausalLMOutput> model = criteria.loadModel()) {
            new TextGeneratorSpeed(model, newTokens).run(batch, rounds);
        }
    }

    private void run(int batch, int rounds) throws TranslateException {
        Random random = new Random(1);
        double[] own = new double[rounds];
        double[] djl = new double[rounds];
        for (int round = -1; round < rounds; ++round) {
            List<int[]> prompts =
                    Stream.generate(() -> random.ints(PROMPT, 3, VOCABULARY).toArray())
                            .limit(batch)
                            .toList();
            long start = System.nanoTime();
            own(prompts);
            long middle = System.nanoTime();
            djl(prompts);
            long end = System.nanoTime();
            if (round >= 0) {
                own[round] = batch * newTokens * 1e9 / (middle - start);
                djl[round] = batch * newTokens * 1e9 / (end - middle);
                print("round " + round, own[round], djl[round]);
            }
        }
        print("median", median(own), median(djl));
    }

    private static double median(double[] values) {
        double[] sorted = values.clone();
        Arrays.sort(sorted);
        return sorted[sorted.length / 2];
    }

    private static void print(String what, double own, double djl) {
        System.out.printf(
                Locale.ROOT,
                "%-8s own loop %6.1f tok/s, TextGenerator %6.1f tok/s: %.2fx%n",
                what,
                own,
                djl,
                djl / own);
    }

    private void own(List<int[]> prompts) {
        GenerationConfig config =
                GenerationConfig.builder().optMaxNewTokens(newTokens).optIgnoreEos(true).build();
        KvQuantBlock block = (KvQuantBlock) model.getBlock();
        new Generator(block.languageModel()).generate(prompts, config);
    }

    private void djl(List<int[]> prompts) throws TranslateException {
        SearchConfig config = new SearchConfig();
        config.setMaxSeqLength(PROMPT + newTokens);
        config.setPadTokenId(0);
        long[][] ids =
                prompts.stream()
                        .map(prompt -> Arrays.stream(prompt).asLongStream().toArray())
                        .toArray(long[][]::new);
        try (NDManager manager = model.getNDManager().newSubManager()) {
            new TextGenerator(predictor, "greedy", config).generate(manager.create(ids));
        }
    }
}
