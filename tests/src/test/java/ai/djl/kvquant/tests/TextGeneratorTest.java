/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.kvquant.translate.KvQuantTranslatorFactory;
import ai.djl.modality.nlp.generate.ContrastiveSeqBatchScheduler;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import com.google.gson.Gson;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;

/** DJL's TextGenerator, scheduler and GPT translator, unchanged, over the engine KvQuant. */
class TextGeneratorTest {

    private static final Path GOLDEN =
            DefaultModel.repositoryRoot().resolve("tests/src/test/resources/golden");

    @TempDir Path directory;

    static Stream<String> checkpoints() throws IOException {
        try (Stream<Path> files = Files.list(GOLDEN.resolve("checkpoints"))) {
            return files.map(p -> p.getFileName().toString()).sorted().toList().stream();
        }
    }

    /** Two prompts, the second padded on the left; then the second alone. */
    @ParameterizedTest
    @MethodSource("checkpoints")
    void searchesLikeTransformers(String name) throws Exception {
        List<SearchGolden> goldens = SearchGolden.of(name);
        try (Searches searches = Searches.load(GOLDEN.resolve("checkpoints/" + name), Map.of())) {
            for (List<SearchGolden> batch : List.of(goldens, goldens.subList(1, 2))) {
                for (String search : List.of("greedy", "beam", "contrastive")) {
                    List<int[]> prompts = SearchGolden.prompts(batch);
                    List<List<Integer>> rows =
                            searches.run(search, prompts, SearchGolden.NEW_TOKENS);
                    assertEquals(
                            SearchGolden.answers(search, batch),
                            SearchGolden.answers(rows, prompts.size()),
                            search);
                    assertEquals(0, searches.block().heldSequences());
                }
            }
        }
    }

    /** What our own loop generates with the same cache; the window is left behind. */
    @ParameterizedTest
    @CsvSource({
        "auto, 128",
        "fp16, 128",
        "int8, 128",
        "int2, 16",
        "rotatekv2, 16",
        "rotatekv4/int4, 0"
    })
    void greedyEqualsOurOwnLoop(String dtype, String window) throws Exception {
        List<int[]> prompts = List.of(SmallModel.prompt(70, 7), SmallModel.prompt(40, 8));
        prompts.forEach(prompt -> prompt[0] = 1);
        Map<String, String> options =
                dtype.matches("auto|fp16")
                        ? Map.of("kv_cache_dtype", dtype)
                        : Map.of("kv_cache_dtype", dtype, "kv_recent_tokens", window);
        try (Searches searches =
                Searches.load(SmallModel.in(directory).tokenizer().directory(), options)) {
            List<List<Integer>> both = searches.run("greedy", prompts, 120);
            for (int row = 0; row < 2; ++row) {
                int[] own =
                        SmallModel.greedy(searches.block().languageModel(), prompts.get(row), 120);
                assertEquals(SearchGolden.list(own), both.get(row));
            }
        }
    }

    /** Our translator passes on one pair of keys and values and needs none to begin with. */
    @Test
    void ourOwnTranslator() throws Exception {
        List<SearchGolden> goldens = SearchGolden.of("gqa4");
        List<int[]> prompts = SearchGolden.prompts(goldens);
        KvQuantTranslatorFactory factory = new KvQuantTranslatorFactory();
        Path checkpoint = GOLDEN.resolve("checkpoints/gqa4");
        try (Searches searches = Searches.load(checkpoint, "KvQuant", factory, Map.of(), Map.of());
                NDManager manager = searches.newManager()) {
            for (String search : List.of("greedy", "beam", "contrastive")) {
                List<List<Integer>> rows = searches.run(search, prompts, SearchGolden.NEW_TOKENS);
                assertEquals(
                        SearchGolden.answers(search, goldens),
                        SearchGolden.answers(rows, prompts.size()),
                        search);
            }
            ContrastiveSeqBatchScheduler scheduler =
                    new ContrastiveSeqBatchScheduler(
                            searches.predictor(), Searches.config(prompts.get(0).length + 4));
            NDArray ids = Searches.padded(manager, prompts.subList(0, 1));
            scheduler.addRequest(ids, manager.create(new long[][] {{7}}));
            scheduler.incrementForward(4);
            long[] row = scheduler.collectResults().get(7L).toLongArray();
            for (int i = 0; i < 4; ++i) {
                assertEquals(goldens.get(0).contrastive()[i], row[prompts.get(0).length + i]);
            }
        }
    }

    /** Searches of many threads, and our own loop beside them, share a model. */
    @Test
    void searchesAtTheSameTime() throws Exception {
        List<SearchGolden> goldens = SearchGolden.of("f32");
        List<int[]> prompts = SearchGolden.prompts(goldens);
        String[] names = {"greedy", "beam", "contrastive", "own"};
        try (Searches searches =
                Searches.load(GOLDEN.resolve("checkpoints/f32"), Map.of("max_batch_size", "16"))) {
            List<Callable<Object>> tasks = new ArrayList<>();
            for (int i = 0; i < 12; ++i) {
                String name = names[i % names.length];
                tasks.add(
                        () -> {
                            if (name.equals("own")) {
                                int[] first = prompts.get(0);
                                int[] tokens =
                                        SmallModel.greedy(
                                                searches.block().languageModel(),
                                                first,
                                                SearchGolden.NEW_TOKENS);
                                assertArrayEquals(goldens.get(0).greedy(), tokens);
                                return name;
                            }
                            List<List<Integer>> rows =
                                    searches.run(name, prompts, SearchGolden.NEW_TOKENS);
                            assertEquals(
                                    SearchGolden.answers(name, goldens),
                                    SearchGolden.answers(rows, prompts.size()),
                                    name);
                            return name;
                        });
            }
            ExecutorService threads = Executors.newFixedThreadPool(6);
            try {
                for (Future<Object> done : threads.invokeAll(tasks)) {
                    done.get();
                }
            } finally {
                threads.shutdown();
            }
            assertEquals(0, searches.block().heldSequences());
        }
    }

    /** DJL's searches close what is created while they run; a basis is kept. */
    @Test
    void aBasisOfEachPrompt() throws Exception {
        List<int[]> prompts = List.of(SmallModel.prompt(200, 7), SmallModel.prompt(180, 8));
        prompts.forEach(prompt -> prompt[0] = 1);
        Map<String, String> options = Map.of("kv_cache_dtype", "svdq2.25", "kv_basis", "prompt");
        try (Searches searches =
                Searches.load(SmallModel.in(directory).tokenizer().directory(), options)) {
            List<List<Integer>> both = searches.run("greedy", prompts, 40);
            for (int row = 0; row < 2; ++row) {
                LanguageModel own = searches.block().languageModel();
                int[] tokens = SmallModel.greedy(own, prompts.get(row), 40);
                assertEquals(SearchGolden.list(tokens), both.get(row));
            }
            searches.run("beam", prompts, 20);
            searches.run("contrastive", prompts, 20);
            assertEquals(0, searches.block().heldSequences());
        }
    }

    /** Prompt and greedy continuation of the default model, by transformers. */
    private record DefaultGolden(int[] prompt, int[] continuation) {}

    @Test
    void defaultModelLikeTransformers() throws Exception {
        String json = Files.readString(GOLDEN.resolve("default_model.json"));
        List<DefaultGolden> shortest =
                Arrays.stream(new Gson().fromJson(json, DefaultGolden[].class))
                        .sorted(Comparator.comparingInt(golden -> golden.prompt().length))
                        .toList()
                        .subList(0, 2);
        try (Searches searches = Searches.load(DefaultModel.directory(), Map.of())) {
            List<int[]> prompts = shortest.stream().map(DefaultGolden::prompt).toList();
            List<List<Integer>> rows = searches.run("greedy", prompts, 32);
            for (int row = 0; row < 2; ++row) {
                int[] expected = Arrays.copyOf(shortest.get(row).continuation(), 32);
                assertEquals(SearchGolden.list(expected), rows.get(row));
            }
        }
    }
}
