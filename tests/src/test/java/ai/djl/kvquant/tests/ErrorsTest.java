/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;

import ai.djl.Device;
import ai.djl.Model;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.kvquant.translate.KvQuantTranslatorFactory;
import ai.djl.ndarray.NDList;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * What users do wrong, done as they do it: each mistake has its exception and its message, options
 * and files when the model is loaded, and a model that is open goes on working.
 */
class ErrorsTest {

    private static final int[] PROMPT = SmallModel.prompt(24, 1);

    private static ZooModel<NDList, NDList> open;
    private static int[] expected;

    @TempDir Path directory;
    private SmallModel model;

    /** The ways in which options reach a model. */
    private enum Way {
        OPTION,
        ARGUMENT,
        SERVING_PROPERTIES,
        URL
    }

    @BeforeAll
    static void openModel(@TempDir Path shared) throws Exception {
        open = SmallModel.in(shared).load(Map.of("kv_cache_tokens", "512"));
        expected = SmallModel.greedy(languageModel(), PROMPT, 8);
    }

    @AfterAll
    static void closeModel() {
        open.close();
    }

    @BeforeEach
    void copyModel() throws Exception {
        model = SmallModel.in(directory);
    }

    @AfterEach
    void openModelWorks() {
        assertArrayEquals(expected, SmallModel.greedy(languageModel(), PROMPT, 8));
    }

    private static LanguageModel languageModel() {
        return SmallModel.languageModel(open);
    }

    /** Every row as an option, and in one of the other ways. */
    static Stream<Arguments> badOptions() {
        List<BadOptions> rows = BadOptions.table().toList();
        return IntStream.range(0, rows.size())
                .boxed()
                .flatMap(
                        i ->
                                Stream.of(Way.OPTION, Way.values()[1 + i % 3])
                                        .map(way -> Arguments.of(way, rows.get(i))));
    }

    @ParameterizedTest(name = "{0} {1}")
    @MethodSource("badOptions")
    void refusesOptionsAtLoad(Way way, BadOptions bad) {
        BadInput.<Way>of(
                        bad.toString(),
                        IllegalArgumentException.class,
                        w -> criteria(w, bad.options()).loadModel().close(),
                        bad.fragments().toArray(String[]::new))
                .check(way);
    }

    private Criteria<NDList, NDList> criteria(Way way, Map<String, String> options)
            throws Exception {
        Criteria.Builder<NDList, NDList> criteria = model.criteria(NDList.class);
        switch (way) {
            case OPTION -> options.forEach(criteria::optOption);
            case ARGUMENT -> options.forEach(criteria::optArgument);
            case SERVING_PROPERTIES ->
                    model.write("serving.properties", join(options, "option.", "\n", ","));
            case URL ->
                    // DJL takes a comma for the end of a URL.
                    criteria.optModelUrls(
                            model.directory().toUri() + "?" + join(options, "", "&", "%2C"));
        }
        return criteria.build();
    }

    private static String join(
            Map<String, String> options, String prefix, String separator, String comma) {
        return options.entrySet().stream()
                .map(e -> prefix + e.getKey() + "=" + e.getValue().replace(",", comma))
                .collect(Collectors.joining(separator));
    }

    static Stream<BadInput<SmallModel>> badFiles() {
        return Stream.concat(BadCheckpoints.table(), BadTextModels.table());
    }

    @ParameterizedTest(name = "{0}")
    @MethodSource("badFiles")
    void refusesModelsAtLoad(BadInput<SmallModel> bad) {
        bad.check(model);
    }

    @ParameterizedTest(name = "{0}")
    @MethodSource("ai.djl.kvquant.tests.BadRequests#table")
    void refusesRequests(BadInput<ZooModel<NDList, NDList>> bad) {
        bad.check(open);
    }

    static Stream<BadInput<SmallModel>> badDevices() {
        return Stream.of(
                BadInput.of(
                        "criteria ask for a GPU that is not there",
                        IllegalArgumentException.class,
                        m -> m.criteria().optDevice(Device.gpu(99)).build().loadModel(),
                        "gpu(99)",
                        "DJL sees",
                        "Device.cpu()"),
                BadInput.of(
                        "a model on a GPU",
                        IllegalArgumentException.class,
                        m -> Model.newInstance("m", Device.gpu(99), "KvQuant"),
                        "gpu(99)",
                        "DJL sees",
                        "Device.cpu()"),
                BadInput.of(
                        "another kind of device",
                        IllegalArgumentException.class,
                        m -> m.criteria().optDevice(Device.of("npu", 0)).build().loadModel(),
                        "npu(0)",
                        "CPUs and NVIDIA GPUs",
                        "Device.cpu()"));
    }

    @ParameterizedTest(name = "{0}")
    @MethodSource("badDevices")
    void refusesDevices(BadInput<SmallModel> bad) {
        bad.check(model);
    }

    /** Settings of the PyTorch engine that would give wrong results. */
    private enum Property {
        ENABLE_CUDA_STREAM,
        USE_MKLDNN;

        @Override
        public String toString() {
            return String.join(".", "ai.djl", "pytorch", name().toLowerCase(Locale.ROOT));
        }
    }

    @ParameterizedTest(name = "{0}")
    @EnumSource
    void refusesProperties(Property property) throws Exception {
        System.setProperty(property.toString(), "true");
        try {
            BadInput.<SmallModel>of(
                            property.toString(),
                            IllegalArgumentException.class,
                            m -> m.load(Map.of()),
                            "can not run with -D" + property + "=true",
                            "Remove it")
                    .check(model);
        } finally {
            System.clearProperty(property.toString());
        }
        model.load(Map.of()).close();
    }

    static Stream<BadInput<SmallModel>> badTypes() {
        return Stream.of(
                BadInput.of(
                        "a model of another engine",
                        IllegalArgumentException.class,
                        m -> {
                            try (Model other = Model.newInstance("other", "PyTorch")) {
                                new KvQuantTranslatorFactory()
                                        .newInstance(String.class, String.class, other, Map.of());
                            }
                        },
                        "needs a model of the engine KvQuant, but other is of another",
                        "add optEngine(\"KvQuant\")"),
                BadInput.of(
                        "types without a translator",
                        IllegalArgumentException.class,
                        m ->
                                new KvQuantTranslatorFactory()
                                        .newInstance(Integer.class, String.class, open, Map.of()),
                        "no translator from java.lang.Integer to java.lang.String",
                        "use (String, String), (Input, Output), (NDList, CausalLMOutput) or"
                                + " (NDList, NDList)"),
                BadInput.of(
                        "a second load",
                        IllegalStateException.class,
                        m -> open.getWrappedModel().load(m.directory()),
                        "is loaded already",
                        "create another"));
    }

    @ParameterizedTest(name = "{0}")
    @MethodSource("badTypes")
    void refusesMisuseOfTheApi(BadInput<SmallModel> bad) {
        bad.check(model);
    }
}
