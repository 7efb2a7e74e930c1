/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.MalformedModelException;
import ai.djl.kvquant.cache.CacheDtype;
import ai.djl.kvquant.evaluate.NeedlePrompts;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDate;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.ParentCommand;
import picocli.CommandLine.Spec;

/** Measures what caches cost in accuracy, and writes a report. */
@Command(
        name = "eval",
        description =
                "Measures caches in three ways: perplexity of texts, error by layer, retrieval of a"
                        + " pass key from long prompts. Writes a report with tables and plots, and"
                        + " the figures as JSON, from which a later run with --reuse goes on.")
final class EvalCommand implements Callable<Integer> {

    private static final List<String> PARTS =
            List.of(EvalPart.PERPLEXITY, EvalPart.LAYERS, EvalPart.NEEDLE);
    private static final int[] NEEDLE_LENGTHS = {2048, 4096, 8192};

    @ParentCommand private Kvq kvq;
    @Spec private CommandSpec spec;

    @Option(
            names = "--text",
            paramLabel = "FILE",
            description =
                    "a text for perplexity, repeatable; errors by layer are measured on the first")
    private List<Path> texts = new ArrayList<>();

    @Mixin private WindowOptions windows;

    @Option(
            names = "--measure",
            paramLabel = "PART",
            split = ",",
            defaultValue = "perplexity,layers,needle",
            description =
                    "what to measure: perplexity, layers, needle; or none, to write the report again"
                            + " (default: ${DEFAULT-VALUE})")
    private List<String> parts;

    @Option(
            names = "--needle-length",
            paramLabel = "N",
            split = ",",
            description =
                    "tokens of a prompt with its answer (default: 2048, 4096 and 8192 as far as the"
                            + " model's context goes)")
    private int[] needleLengths;

    @Option(
            names = "--needle-depth",
            paramLabel = "PERCENT",
            split = ",",
            defaultValue = "0,25,50,75,100",
            description = "where the pass key is hidden (default: ${DEFAULT-VALUE})")
    private double[] needleDepths;

    @Option(
            names = "--needle-trials",
            paramLabel = "N",
            defaultValue = "5",
            description = "prompts of each length and depth (default: ${DEFAULT-VALUE})")
    private int needleTrials;

    @Option(
            names = "--needle-text",
            paramLabel = "FILE",
            description = "the text to hide pass keys in (default: a few built-in sentences)")
    private Path needleText;

    @Option(
            names = "--seed",
            paramLabel = "N",
            defaultValue = "1",
            description = "what pass keys are drawn from (default: ${DEFAULT-VALUE})")
    private long seed;

    @Option(
            names = "--jobs",
            paramLabel = "N",
            defaultValue = "1",
            description =
                    "windows or prompts that are computed at a time, in equal parts of the processors"
                            + " (default: ${DEFAULT-VALUE})")
    private int jobs;

    @Option(
            names = "--output",
            paramLabel = "DIR",
            defaultValue = "accuracy",
            description = "where the report goes (default: ${DEFAULT-VALUE})")
    private Path output;

    @Option(
            names = "--reuse",
            description = "measure only what --output does not hold yet, and report all of it")
    private boolean reuse;

    @Option(
            names = "--note",
            paramLabel = "TEXT",
            description = "a sentence for the head of the report, repeatable")
    private List<String> notes = new ArrayList<>();

    @Override
    public Integer call() throws Exception {
        checkUsage();
        EvalStore store = new EvalStore(output);
        if (!reuse && store.hasResults()) {
            throw new IllegalArgumentException(
                    "--output "
                            + output
                            + " holds results already; add --reuse to complete them, or choose"
                            + " another directory.");
        }
        String[] all = CacheDtype.names().toArray(String[]::new);
        List<CacheArguments.Named> caches = new CacheArguments(kvq, all).named(Map.of());
        if (!parts.contains("none")) {
            measure(store, caches);
        }
        AccuracyReport report = AccuracyReport.read(store, notes);
        report.write();
        print(report);
        return 0;
    }

    private void checkUsage() throws IOException {
        Set<String> unknown = new HashSet<>(parts);
        PARTS.forEach(unknown::remove);
        unknown.remove("none");
        require(
                unknown.isEmpty() && (!parts.contains("none") || parts.size() == 1),
                "--measure is "
                        + String.join(",", parts)
                        + "; allowed: perplexity, layers and needle, or none.");
        boolean needsText = parts.contains(EvalPart.PERPLEXITY) || parts.contains(EvalPart.LAYERS);
        require(
                !texts.isEmpty() || !needsText,
                "--text is missing: perplexity and layers need one (or give --measure needle).");
        require(
                windows.context() > 1,
                "--context is " + windows.context() + "; allowed: 2 or more.");
        require(windows.most() > 0, "--windows is " + windows.most() + "; allowed: 1 or more.");
        require(jobs > 0, "--jobs is " + jobs + "; allowed: 1 or more.");
        require(needleTrials > 0, "--needle-trials is " + needleTrials + "; allowed: 1 or more.");
        require(
                Arrays.stream(needleDepths).allMatch(d -> d >= 0 && d <= 100),
                "--needle-depth is outside the prompt; allowed: 0 to 100 percent.");
        Set<String> names = new HashSet<>();
        for (Path text : texts) {
            require(
                    names.add(text.getFileName().toString()),
                    "--text is given twice with the name "
                            + text.getFileName()
                            + "; texts are told apart by their names.");
            // Before the model is loaded: a file that can not be read is told at once.
            Texts.read(text, "--text");
        }
    }

    private void require(boolean condition, String message) {
        if (!condition) {
            throw new ParameterException(spec.commandLine(), message);
        }
    }

    private void measure(EvalStore store, List<CacheArguments.Named> caches)
            throws IOException, MalformedModelException {
        String problem = Outputs.problem(output);
        require(problem == null, "--output " + output + " " + problem);
        String filler =
                needleText == null ? NeedlePrompts.FILLER : Texts.read(needleText, "--needle-text");
        EvalPart.Run run = new EvalPart.Run(LocalDate.now().toString(), command());
        List<String> head = new ArrayList<>(notes);
        if (kvq.model == null) {
            head.add(DefaultModel.NOTE);
        }
        Jobs.shareProcessors(jobs);
        try (Session session = Session.open(kvq)) {
            EvalHeading heading = EvalHeading.of(session, run, head);
            EvalMeasurer measurer = new EvalMeasurer(session, store, heading, caches, jobs);
            if (parts.contains(EvalPart.PERPLEXITY)) {
                measurer.perplexity(texts, windows.context(), windows.most());
            }
            if (parts.contains(EvalPart.LAYERS)) {
                measurer.layers(texts.get(0), windows.context());
            }
            if (parts.contains(EvalPart.NEEDLE)) {
                measurer.needle(plan(filler, session.model().geometry().maxTokens()));
            }
        }
    }

    private EvalMeasurer.NeedlePlan plan(String filler, int longest) {
        int[] lengths =
                needleLengths != null
                        ? needleLengths
                        : Arrays.stream(NEEDLE_LENGTHS).filter(n -> n <= longest).toArray();
        if (lengths.length == 0) {
            lengths = new int[] {longest};
        }
        return new EvalMeasurer.NeedlePlan(
                needleText == null ? null : needleText.getFileName().toString(),
                filler,
                lengths,
                Arrays.stream(needleDepths).map(d -> d / 100).toArray(),
                needleTrials,
                seed);
    }

    /** What was typed and makes a difference; files and directories by their names. */
    private String command() {
        List<String> words = new ArrayList<>(List.of("kvq"));
        boolean skip = false;
        for (String word : spec.root().commandLine().getParseResult().originalArgs()) {
            boolean isNote = "--note".equals(word);
            if (!skip && !isNote && !"--verbose".equals(word) && !"--json".equals(word)) {
                words.add(shown(word));
            }
            skip = isNote;
        }
        return String.join(" ", words);
    }

    private static String shown(String word) {
        String shown = word.replaceAll("(?<=^|=)/(?:[^/]*/)*(?=.)", "");
        if (word.contains("/") && Files.exists(Path.of(word))) {
            shown = Path.of(word).getFileName().toString();
        }
        return shown.matches("[\\p{Alnum}./,:=_-]+") ? shown : "'" + shown + "'";
    }

    private void print(AccuracyReport report) {
        PrintWriter out = spec.commandLine().getOut();
        if (kvq.json) {
            report.jsonLines().forEach(out::println);
        } else {
            for (Table table : report.summary()) {
                table.print(out);
                out.println();
            }
            out.println("Report: " + output.resolve(AccuracyReport.FILE));
        }
        out.flush();
    }
}
