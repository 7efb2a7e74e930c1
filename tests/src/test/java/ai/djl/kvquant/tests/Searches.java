/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import ai.djl.Device;
import ai.djl.inference.Predictor;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.modality.nlp.generate.CausalLMOutput;
import ai.djl.modality.nlp.generate.SearchConfig;
import ai.djl.modality.nlp.generate.TextGenerator;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.nn.Block;
import ai.djl.pytorch.zoo.nlp.textgeneration.PtGptTranslatorFactory;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import ai.djl.translate.TranslateException;
import ai.djl.translate.TranslatorFactory;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** A model behind DJL's TextGenerator with DJL's translator, as a user puts them together. */
final class Searches implements AutoCloseable {

    private final ZooModel<NDList, CausalLMOutput> model;
    private final Predictor<NDList, CausalLMOutput> predictor;

    private Searches(ZooModel<NDList, CausalLMOutput> model) {
        this.model = model;
        predictor = model.newPredictor();
    }

    /** A model of the engine KvQuant; the translator keeps its 12 layers of 12 heads. */
    static Searches load(Path directory, Map<String, String> options) throws Exception {
        Map<String, String> all = new HashMap<>(options);
        all.put("dtype", "fp32");
        return load(directory, "KvQuant", all, Map.of());
    }

    /** The same on a device. */
    static Searches load(Device device, Path directory, Map<String, String> options)
            throws Exception {
        Map<String, String> all = new HashMap<>(options);
        all.put("dtype", "fp32");
        return load(device, directory, "KvQuant", new PtGptTranslatorFactory(), all, Map.of());
    }

    static Searches load(
            Path directory, String engine, Map<String, String> options, Map<String, ?> arguments)
            throws Exception {
        return load(directory, engine, new PtGptTranslatorFactory(), options, arguments);
    }

    static Searches load(
            Path directory,
            String engine,
            TranslatorFactory factory,
            Map<String, String> options,
            Map<String, ?> arguments)
            throws Exception {
        return load(null, directory, engine, factory, options, arguments);
    }

    private static Searches load(
            Device device,
            Path directory,
            String engine,
            TranslatorFactory factory,
            Map<String, String> options,
            Map<String, ?> arguments)
            throws Exception {
        Criteria.Builder<NDList, CausalLMOutput> criteria =
                Criteria.builder()
                        .setTypes(NDList.class, CausalLMOutput.class)
                        .optModelPath(directory)
                        .optDevice(device)
                        .optEngine(engine)
                        .optTranslatorFactory(factory);
        options.forEach(criteria::optOption);
        arguments.forEach(criteria::optArgument);
        return new Searches(criteria.build().loadModel());
    }

    KvQuantBlock block() {
        return (KvQuantBlock) model.getBlock();
    }

    Block anyBlock() {
        return model.getBlock();
    }

    Predictor<NDList, CausalLMOutput> predictor() {
        return predictor;
    }

    NDManager newManager() {
        return model.getNDManager().newSubManager();
    }

    static SearchConfig config(int maxLength) {
        SearchConfig config = new SearchConfig();
        config.setMaxSeqLength(maxLength);
        config.setPadTokenId(SearchGolden.PADDING);
        config.setBeam(3);
        config.setK(4);
        config.setAlpha(0.6f);
        return config;
    }

    /** Prompts as one array, padded on the left. */
    static NDArray padded(NDManager manager, List<int[]> prompts) {
        int columns = prompts.stream().mapToInt(prompt -> prompt.length).max().orElseThrow();
        long[][] ids = new long[prompts.size()][columns];
        for (int row = 0; row < ids.length; ++row) {
            int[] prompt = prompts.get(row);
            Arrays.fill(ids[row], SearchGolden.PADDING);
            for (int i = 0; i < prompt.length; ++i) {
                ids[row][columns - prompt.length + i] = prompt[i];
            }
        }
        return manager.create(ids);
    }

    /** Generates so many tokens behind the longest prompt; returns what is behind the prompts. */
    List<List<Integer>> run(String search, List<int[]> prompts, int newTokens)
            throws TranslateException {
        try (NDManager manager = newManager()) {
            NDArray ids = padded(manager, prompts);
            int columns = Math.toIntExact(ids.getShape().get(1));
            TextGenerator generator =
                    new TextGenerator(predictor, search, config(columns + newTokens));
            NDArray output = generator.generate(ids);
            List<List<Integer>> rows = new ArrayList<>();
            for (int row = 0; row < output.getShape().get(0); ++row) {
                long[] all = output.get(row).toLongArray();
                rows.add(Arrays.stream(all, columns, all.length).mapToObj(t -> (int) t).toList());
            }
            return rows;
        }
    }

    @Override
    public void close() {
        predictor.close();
        model.close();
    }
}
