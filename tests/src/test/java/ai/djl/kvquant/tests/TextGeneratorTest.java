/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.djl.inference.Predictor;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.modality.nlp.generate.CausalLMOutput;
import ai.djl.modality.nlp.generate.SearchConfig;
import ai.djl.modality.nlp.generate.TextGenerator;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.pytorch.zoo.nlp.textgeneration.PtGptTranslatorFactory;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class TextGeneratorTest {

    @TempDir Path directory;
    private SmallModel small;

    @BeforeEach
    void copyModel() throws Exception {
        small = SmallModel.in(directory);
    }

    private ZooModel<NDList, CausalLMOutput> load(String dtype) throws Exception {
        return Criteria.builder()
                .setTypes(NDList.class, CausalLMOutput.class)
                .optModelPath(directory)
                .optEngine("KvQuant")
                .optTranslatorFactory(new PtGptTranslatorFactory())
                .optOption("kv_cache_dtype", dtype)
                .optOption("dtype", "fp32")
                .build()
                .loadModel();
    }

    @Test
    void greedy() throws Exception {
        for (String search : new String[] {"greedy", "beam", "contrastive"}) {
        try (ZooModel<NDList, CausalLMOutput> model = load("auto");
                Predictor<NDList, CausalLMOutput> predictor = model.newPredictor()) {
            KvQuantBlock block = (KvQuantBlock) model.getBlock();
            int[] prompt = SmallModel.prompt(20, 1);
            int[] expected = SmallModel.greedy(block.languageModel(), prompt, 40);
            SearchConfig config = new SearchConfig();
            config.setMaxSeqLength(60);
            config.setPadTokenId(300);
            try (NDManager manager = model.getNDManager().newSubManager()) {
                long[] ids = Arrays.stream(prompt).asLongStream().toArray();
                NDArray in = manager.create(new long[][] {ids});
                long[] out = new TextGenerator(predictor, search, config).generate(in).toLongArray();
                System.out.println(search + " " + Arrays.toString(out));
                System.out.println(manager.getManagedArrays().size() + " " + block.heldUsage());
                if (search.equals("greedy"))
                assertArrayEquals(
                        IntStream.concat(Arrays.stream(prompt), Arrays.stream(expected)).asLongStream().toArray(), out);
            }
            assertEquals(0, block.heldSequences());
        }
        }
    }
}
