/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
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
}
