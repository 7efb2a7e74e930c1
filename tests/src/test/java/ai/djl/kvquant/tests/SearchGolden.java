/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import com.google.gson.Gson;
import java.io.IOException;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/**
 * What searches answer to a prompt by their definition, on transformers' logits and hidden states.
 *
 * @param prompt the prompt
 * @param greedy the new tokens of greedy search
 * @param beam the new tokens of each beam
 * @param contrastive the new tokens of contrastive search
 */
record SearchGolden(int[] prompt, int[] greedy, int[][] beam, int[] contrastive) {

    static final long PADDING = 0;
    static final int NEW_TOKENS = 24;

    static List<SearchGolden> of(String checkpoint) throws IOException {
        String json =
                Files.readString(
                        DefaultModel.repositoryRoot()
                                .resolve("tests/src/test/resources/golden/searches")
                                .resolve(checkpoint + ".json"));
        return List.of(new Gson().fromJson(json, SearchGolden[].class));
    }

    /** The answers of a search: the rows of each prompt, in no order. */
    static List<Set<List<Integer>>> answers(String search, List<SearchGolden> goldens) {
        return goldens.stream()
                .map(golden -> golden.rows(search).map(SearchGolden::list))
                .map(rows -> rows.collect(Collectors.toSet()))
                .toList();
    }

    /** The rows of each prompt, in no order: DJL asks for the best beams, not for their order. */
    static List<Set<List<Integer>>> answers(List<List<Integer>> rows, int prompts) {
        int each = rows.size() / prompts;
        return IntStream.range(0, prompts)
                .mapToObj(i -> Set.copyOf(rows.subList(i * each, (i + 1) * each)))
                .toList();
    }

    private Stream<int[]> rows(String search) {
        return switch (search) {
            case "greedy" -> Stream.of(greedy);
            case "beam" -> Arrays.stream(beam);
            default -> Stream.of(contrastive);
        };
    }

    static List<int[]> prompts(List<SearchGolden> goldens) {
        return goldens.stream().map(SearchGolden::prompt).toList();
    }

    static List<Integer> list(int[] tokens) {
        return Arrays.stream(tokens).boxed().toList();
    }
}
