/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.EnabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;

/**
 * What run-example and notebooks/run start, and what they say when they can not; on a copy whose
 * launcher tells how it was called. Nothing is fetched or built.
 */
@EnabledOnOs(value = OS.LINUX, disabledReason = "the scripts are for Linux")
class ExampleScriptsTest {

    private static final String PROGRAMS = "src/main/java/ai/djl/kvquant/examples/programs";

    @TempDir private Path directory;
    private Path examples;
    private Path model;

    /** What a script printed on both streams, and its exit code. */
    private record Run(int exitCode, String output) {}

    @BeforeEach
    void copy() throws IOException {
        examples = Files.createDirectories(directory.resolve("root/examples")).toRealPath();
        Files.createDirectories(examples.resolve("notebooks"));
        Files.createDirectories(examples.resolve(PROGRAMS));
        for (String file : List.of("run-example", "notebooks/run", "notebooks/quickstart.ipynb")) {
            Files.copy(Path.of(file), examples.resolve(file));
        }
        try (Stream<Path> programs = Files.list(Path.of(PROGRAMS))) {
            for (Path program : programs.toList()) {
                Files.copy(program, examples.resolve(program));
            }
        }
        model = Files.createDirectory(examples.getParent().resolve("tiny"));
        Files.createFile(model.resolve("config.json"));
        script("kvq", "echo \"$KVQ_MAIN in ${PWD##*/}: $*\"");
        script("fetch-model", "echo " + model);
    }

    private void script(String name, String text) throws IOException {
        Path file = examples.resolve(name);
        Files.writeString(file, "#!/usr/bin/env bash\n" + text + "\n");
        assertTrue(file.toFile().setExecutable(true));
    }

    private Run run(Map<String, String> environment, String script, String... arguments)
            throws Exception {
        List<String> command = new ArrayList<>(List.of(examples.resolve(script).toString()));
        command.addAll(List.of(arguments));
        ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true);
        builder.directory(examples.toFile());
        builder.environment().remove("KVQ_MODEL");
        builder.environment().putAll(environment);
        Process process = builder.start();
        try (InputStream out = process.getInputStream()) {
            String text = new String(out.readAllBytes(), StandardCharsets.UTF_8).strip();
            return new Run(process.waitFor(), text);
        }
    }

    private Run example(String... arguments) throws Exception {
        return run(Map.of(), "run-example", arguments);
    }

    private Run notebook(String... arguments) throws Exception {
        return run(Map.of(), "notebooks/run", arguments);
    }

    @Test
    void examplesGetAModel() throws Exception {
        assertEquals(
                new Run(0, "ExampleRunner in examples: Answer " + model + " Why? int2"),
                example("Answer", "Why?", "int2"));
        assertEquals(
                new Run(0, "ExampleRunner in examples: PromptBatch " + model),
                example("--model", model.toString(), "PromptBatch"));
        // A client has none.
        assertEquals(
                new Run(0, "ExampleRunner in examples: ServedChat http://localhost"),
                example("ServedChat", "http://localhost"));
    }

    @Test
    void examplesThatCanNotBeStarted() throws Exception {
        String names = "Answer ChatStream DocumentQuestions PromptBatch ServedChat";
        for (String wrong : List.of("Anwser", "../Answer", "package-info", "answer")) {
            assertEquals(
                    new Run(
                            2,
                            "run-example: there is no example '"
                                    + wrong
                                    + "'; there are: "
                                    + names),
                    example(wrong));
        }
        assertEquals(
                new Run(2, "run-example: --model needs a directory; see --help"),
                example("--model"));
        assertEquals(
                new Run(
                        2,
                        "run-example: --model nowhere has no config.json; give a HuggingFace"
                                + " directory"),
                example("--model", "nowhere", "Answer"));
        assertEquals(2, example().exitCode);
        assertTrue(example("--help").output.startsWith("Usage: run-example"));
    }

    @Test
    void notebooksRunWhereTheyAre() throws Exception {
        String quickstart = examples.resolve("notebooks/quickstart.ipynb").toString();
        String started = "notebook.NotebookRunner in notebooks: ";
        assertEquals(new Run(0, started + quickstart), notebook());
        assertEquals(
                new Run(0, started + "--check " + quickstart),
                notebook("--check", "notebooks/quickstart.ipynb"));
    }

    @Test
    void notebooksThatCanNotBeRun() throws Exception {
        assertEquals(
                new Run(
                        2,
                        "run: there is no notebook 'quick.ipynb'; "
                                + examples.resolve("notebooks")
                                + " has: quickstart.ipynb"),
                notebook("quick.ipynb"));
        assertEquals(
                new Run(2, "run: unknown argument '--chek'; allowed: --check, names of notebooks"),
                notebook("--chek"));
        assertEquals(
                new Run(
                        2,
                        "run: KVQ_MODEL is '/no/such', which has no config.json; name a HuggingFace"
                                + " directory"),
                run(Map.of("KVQ_MODEL", "/no/such"), "notebooks/run"));
    }

    /** Neither was ever built: the launcher, here the real one, says what a build needs. */
    @Test
    void withoutABuild() throws Exception {
        Files.delete(examples.resolve("kvq"));
        Files.copy(Path.of("kvq"), examples.resolve("kvq"));
        script("java", "echo 'openjdk version \"17.0.9\"' >&2");
        script("javac", "echo 'javac 11.0.2' >&2");
        String bin = examples + ":" + System.getenv("PATH");
        Map<String, String> environment = Map.of("PATH", bin, "JAVA_HOME", "");
        String message =
                "kvq: javac is 'javac 11.0.2', but 17 or later is needed; install it, e.g. 'apt"
                        + " install openjdk-17-jdk-headless', or set JAVA_HOME";
        assertEquals(new Run(1, message), run(environment, "run-example", "Answer"));
        assertEquals(new Run(1, message), run(environment, "notebooks/run"));
    }
}
