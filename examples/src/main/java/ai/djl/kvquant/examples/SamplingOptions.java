/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.generate.GenerationConfig;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import picocli.CommandLine.Option;

/** Options of text generation; what is not given is as the model's generation_config.json says. */
final class SamplingOptions {

    @Option(
            names = "--max-new-tokens",
            paramLabel = "N",
            description = "end after N tokens (default: 256 unless the model says otherwise)")
    private Integer maxNewTokens;

    @Option(
            names = "--temperature",
            paramLabel = "T",
            description = "sample with this temperature; 0: always the most probable token")
    private Float temperature;

    @Option(names = "--top-k", paramLabel = "N", description = "sample among the N best tokens")
    private Integer topK;

    @Option(
            names = "--top-p",
            paramLabel = "P",
            description = "sample among the best tokens with a total probability of P")
    private Float topP;

    @Option(
            names = "--min-p",
            paramLabel = "P",
            description = "sample among tokens with at least P times the best one's probability")
    private Float minP;

    @Option(
            names = "--repetition-penalty",
            paramLabel = "X",
            description = "make tokens that occurred less probable; 1: not")
    private Float repetitionPenalty;

    @Option(names = "--seed", paramLabel = "N", description = "make sampling repeatable")
    private Long seed;

    @Option(
            names = "--stop",
            paramLabel = "TEXT",
            description = "end before this text; may be repeated")
    private List<String> stop = new ArrayList<>();

    @Option(names = "--ignore-eos", description = "go on after an end-of-sequence token")
    private boolean ignoreEos;

    GenerationConfig config(Path model) throws IOException {
        GenerationConfig.Builder builder = GenerationConfig.fromModelDirectory(model).toBuilder();
        if (topK != null) {
            builder.optTopK(topK);
        }
        if (topP != null) {
            builder.optTopP(topP);
        }
        if (minP != null) {
            builder.optMinP(minP);
        }
        if (temperature != null) {
            builder.optTemperature(temperature);
        }
        if (repetitionPenalty != null) {
            builder.optRepetitionPenalty(repetitionPenalty);
        }
        if (seed != null) {
            builder.optSeed(seed);
        }
        if (maxNewTokens != null) {
            builder.optMaxNewTokens(maxNewTokens);
        }
        if (!stop.isEmpty()) {
            builder.optStopStrings(stop);
        }
        return builder.optIgnoreEos(ignoreEos).build();
    }
}
