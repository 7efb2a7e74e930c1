/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.calibrate.Calibrator;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.translate.KvQuantTranslatorFactory;
import ai.djl.ndarray.NDList;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.Stream;

/**
 * A copy of one of the small golden checkpoints, to be changed and loaded as a user loads a model.
 *
 * <p>All of them have a vocabulary of 256; {@code f32} has 2 layers, 2 heads on 1 kv head, head_dim
 * 64 and a context of 512 tokens.
 */
final class SmallModel {

    static final int VOCABULARY = 256;
    static final int CONTEXT = 512;

    private static final Path CHECKPOINTS =
            DefaultModel.repositoryRoot().resolve("tests/src/test/resources/golden/checkpoints");

    private final Path directory;

    private SmallModel(Path directory) {
        this.directory = directory;
    }

    /** A copy of the checkpoint {@code f32}. */
    static SmallModel in(Path directory) throws IOException {
        return copy("f32", directory);
    }

    static SmallModel copy(String name, Path directory) throws IOException {
        return new SmallModel(directory).replaceBy(name);
    }

    /** Overwrites the files by those of another checkpoint. */
    SmallModel replaceBy(String name) throws IOException {
        try (Stream<Path> files = Files.list(CHECKPOINTS.resolve(name))) {
            for (Path file : files.toList()) {
                Path target = directory.resolve(file.getFileName());
                Files.copy(file, target, StandardCopyOption.REPLACE_EXISTING);
            }
        }
        return this;
    }

    Path file(String name) {
        return directory.resolve(name);
    }

    Path directory() {
        return directory;
    }

    SmallModel write(String name, String text) throws IOException {
        Files.writeString(file(name), text);
        return this;
    }

    SmallModel delete(String name) throws IOException {
        Files.delete(file(name));
        return this;
    }

    /** Sets a value of config.json, written as JSON. */
    SmallModel config(String key, String json) throws IOException {
        JsonElement value = JsonParser.parseString(json);
        JsonObject config =
                JsonParser.parseString(Files.readString(file("config.json"))).getAsJsonObject();
        config.add(key, value);
        return write("config.json", config.toString());
    }

    /** Writes a tokenizer of 256 words, w0 to w255, separated by blanks. */
    SmallModel tokenizer() throws IOException {
        JsonObject vocabulary = new JsonObject();
        for (int i = 0; i < VOCABULARY; ++i) {
            vocabulary.addProperty("w" + i, i);
        }
        return write(
                "tokenizer.json",
                """
                {"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
                 "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
                 "post_processor": null, "decoder": null,
                 "model": {"type": "WordLevel", "unk_token": "w3", "vocab": %s}}
                """
                        .formatted(vocabulary));
    }

    /** Criteria for the plain block, in fp32. */
    Criteria.Builder<NDList, NDList> criteria() {
        return criteria(NDList.class).optOption("dtype", "fp32");
    }

    <T> Criteria.Builder<T, T> criteria(Class<T> type) {
        return Criteria.builder()
                .setTypes(type, type)
                .optModelPath(directory)
                .optEngine("KvQuant")
                .optTranslatorFactory(new KvQuantTranslatorFactory());
    }

    ZooModel<NDList, NDList> load(Map<String, String> options) throws Exception {
        Criteria.Builder<NDList, NDList> criteria = criteria();
        options.forEach(criteria::optOption);
        return criteria.build().loadModel();
    }

    static LanguageModel languageModel(ZooModel<?, ?> model) {
        return ((KvQuantBlock) model.getBlock()).languageModel();
    }

    /** Most probable tokens after a prompt. */
    static int[] greedy(LanguageModel model, int[] prompt, int count) {
        return new Generator(model).generate(List.of(prompt), config(count)).get(0).tokens();
    }

    static GenerationConfig config(int newTokens) {
        return GenerationConfig.builder().optMaxNewTokens(newTokens).optIgnoreEos(true).build();
    }

    /** Options with what a calibration on these windows says, if they need one. */
    static CacheOptions calibrated(LlamaModel model, CacheOptions options, List<int[]> windows) {
        if (!options.needsCalibration()) {
            return options;
        }
        Calibrator calibrator = new Calibrator(model, windows);
        return options.withCalibration(
                calibrator.run(List.of(options), Map.of(), layers -> {}).get(0));
    }

    /** Token ids at random. */
    static int[] prompt(int length, long seed) {
        return new Random(seed).ints(length, 0, VOCABULARY).toArray();
    }
}
