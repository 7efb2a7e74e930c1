/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.calibrate.CalibratedOptions;
import ai.djl.kvquant.calibrate.CalibrationFile;
import ai.djl.kvquant.calibrate.CalibrationStore;
import ai.djl.kvquant.calibrate.Sensitivity;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.ParentCommand;
import picocli.CommandLine.Spec;

/** Measures a model on a text and writes what caches need to know of it. */
@Command(
        name = "calibrate",
        description =
                "Measures the model on a text and writes a calibration file for each cache beside"
                        + " the model, where it is found when the model is loaded.")
final class CalibrateCommand implements Callable<Integer> {

    @ParentCommand private Kvq kvq;
    @Spec private CommandSpec spec;

    @Option(names = "--text", required = true, paramLabel = "FILE", description = "the text")
    private Path text;

    @Option(
            names = "--tokens",
            paramLabel = "N",
            defaultValue = "8192",
            description =
                    "tokens to use, in windows spread evenly over the text (default:"
                            + " ${DEFAULT-VALUE})")
    private int tokens;

    @Option(
            names = "--gradients",
            description =
                    "take gradients of the loss to find out which errors matter: better for kvquant"
                            + " caches, worse for int and latent ones, and takes three to four"
                            + " times as long")
    private boolean gradients;

    @Option(
            names = "--output",
            paramLabel = "DIR",
            description = "where the files go (default: the model's directory)")
    private Path output;

    @Override
    public Integer call() throws Exception {
        List<CacheOptions> caches = new CacheArguments(kvq, "int2").several(Map.of());
        String content = Texts.read(text, "--text");
        Sensitivity sensitivity = gradients ? Sensitivity.GRADIENTS : Sensitivity.QUERIES;
        int passes = gradients ? 2 : 1;
        if (output != null) {
            createOutput();
        }
        try (Session session = Session.open(kvq);
                Progress progress =
                        Progress.of(
                                "Calibrating", passes * session.model().geometry().numLayers())) {
            Path directory = output == null ? writable(session.directory()) : output;
            List<Calibration> calibrations =
                    new CalibratedOptions(session.model(), session.directory())
                            .calibrate(
                                    caches,
                                    content,
                                    session.tokenizer(),
                                    tokens,
                                    sensitivity,
                                    layers -> progress.step());
            for (int i = 0; i < caches.size(); ++i) {
                String name = caches.get(i).calibrationName();
                Path file = directory.resolve(CalibrationStore.fileName(name));
                CalibrationFile.write(file, calibrations.get(i));
                print(name, file, calibrations.get(i));
            }
        }
        return 0;
    }

    private void createOutput() throws IOException {
        String problem = Outputs.problem(output);
        if (problem != null) {
            throw new ParameterException(spec.commandLine(), "--output " + output + " " + problem);
        }
        if (!Files.isDirectory(output)) {
            Files.createDirectories(output);
        }
    }

    private static Path writable(Path model) {
        if (Outputs.problem(model) != null) {
            throw new IllegalArgumentException(
                    "The model's directory "
                            + model
                            + " can not be written; change its permissions, or say where the files"
                            + " go with --output DIR.");
        }
        return model;
    }

    private void print(String name, Path file, Calibration calibration) {
        String used = calibration.metadata().get(CalibrationFile.TOKENS);
        String settings = calibration.metadata().get(CalibrationFile.SETTINGS);
        if (kvq.json) {
            Map<String, Object> json = new LinkedHashMap<>();
            json.put("kv_cache_dtype", name);
            json.put("file", file.toString());
            json.put("tokens", Integer.valueOf(used));
            json.put("settings", settings);
            spec.commandLine().getOut().println(Json.line(json));
        } else {
            spec.commandLine()
                    .getOut()
                    .println(name + ": " + file + ", " + used + " tokens, settings " + settings);
        }
    }
}
