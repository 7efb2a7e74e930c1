/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.benchmark;

import java.util.Collection;
import java.util.Locale;
import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.runner.Runner;
import org.openjdk.jmh.runner.RunnerException;
import org.openjdk.jmh.runner.options.CommandLineOptionException;
import org.openjdk.jmh.runner.options.CommandLineOptions;
import org.openjdk.jmh.runner.options.OptionsBuilder;

/** Runs a benchmark class and prints each result's ratio to the first one of the same run. */
public final class Benchmarks {

    private Benchmarks() {}

    /**
     * Runs benchmarks.
     *
     * @param args JMH's command line; the benchmark's class name selects it
     * @throws RunnerException if a benchmark fails
     * @throws CommandLineOptionException if the command line is wrong
     */
    public static void main(String[] args) throws RunnerException, CommandLineOptionException {
        Collection<RunResult> results =
                new Runner(
                                new OptionsBuilder()
                                        .parent(new CommandLineOptions(args))
                                        .jvmArgsAppend(
                                                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
                                        .build())
                        .run();
        double baseline = 0;
        System.out.println();
        for (RunResult result : results) {
            double score = result.getPrimaryResult().getScore();
            baseline = baseline == 0 ? score : baseline;
            System.out.printf(
                    Locale.ROOT,
                    "%-40s %10.3f %s  %.2fx%n",
                    name(result),
                    score,
                    result.getPrimaryResult().getScoreUnit(),
                    baseline / score);
        }
    }

    private static String name(RunResult result) {
        StringBuilder name = new StringBuilder(result.getPrimaryResult().getLabel());
        for (String key : result.getParams().getParamsKeys()) {
            name.append(' ').append(result.getParams().getParam(key));
        }
        return name.toString();
    }
}
