/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.EnabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;

/** The launcher names what is missing before it builds; on a copy that was never built. */
@EnabledOnOs(value = OS.LINUX, disabledReason = "the launcher is for Linux")
class LauncherTest {

    private static final String[] BASICS = {
        "bash",
        "env",
        "readlink",
        "dirname",
        "find",
        "grep",
        "sed",
        "head",
        "uname",
        "mkdir",
        "flock",
        "cat"
    };

    @TempDir private Path directory;
    private Path bin;
    private Path launcher;

    @BeforeEach
    void copy() throws IOException {
        bin = Files.createDirectory(directory.resolve("bin"));
        Path examples = Files.createDirectories(directory.resolve("root/examples"));
        launcher = Files.copy(Path.of("kvq"), examples.resolve("kvq"));
        launcher.toFile().setExecutable(true);
        for (String command : BASICS) {
            Files.createSymbolicLink(bin.resolve(command), find(command));
        }
    }

    private static Path find(String command) {
        return Stream.of(System.getenv("PATH").split(File.pathSeparator))
                .map(folder -> Path.of(folder, command))
                .filter(Files::isExecutable)
                .findFirst()
                .orElseThrow();
    }

    private void fake(String command, String output) throws IOException {
        Path file = bin.resolve(command);
        Files.writeString(file, "#!/usr/bin/env bash\necho '" + output + "' >&2\n");
        file.toFile().setExecutable(true);
    }

    private String failure() throws Exception {
        return run(1, Map.of());
    }

    /** What it says on stderr. */
    private String run(int exitCode, Map<String, String> environment) throws Exception {
        ProcessBuilder builder = new ProcessBuilder(launcher.toString(), "info");
        builder.environment().clear();
        builder.environment().put("PATH", bin.toString());
        builder.environment().putAll(environment);
        Process process = builder.start();
        try (InputStream err = process.getErrorStream()) {
            String text = new String(err.readAllBytes(), StandardCharsets.UTF_8).strip();
            assertEquals(exitCode, process.waitFor(), text);
            return text;
        }
    }

    /** Files as a build leaves them. */
    private void build() throws IOException {
        Path root = directory.resolve("root");
        for (String folder :
                List.of(
                        "native-ops/src",
                        "native-ops/cmake",
                        "native-ops/target/classes/native/linux-x86_64",
                        "djl-kvquant/src/main",
                        "examples/src/main",
                        "examples/target/lib")) {
            Files.createDirectories(root.resolve(folder));
        }
        for (String file :
                List.of(
                        "pom.xml",
                        "native-ops/pom.xml",
                        "native-ops/CMakeLists.txt",
                        "native-ops/target/classes/native/linux-x86_64/libkvquant_cpu.so",
                        "djl-kvquant/pom.xml",
                        "examples/pom.xml",
                        "examples/target/lib/a.jar",
                        "examples/target/lib/pytorch-native-cpu-2.7.1-linux-x86_64.jar",
                        "examples/target/djl-kvquant-examples.jar")) {
            Files.writeString(root.resolve(file), "");
        }
    }

    @Test
    void aFlavorWithCudaLeavesLibtorchForCpusOut() throws Exception {
        build();
        Path java = bin.resolve("java");
        Files.writeString(
                java,
                "#!/usr/bin/env bash\n[[ $1 == -version ]] && echo 'java 17.0.9' >&2 && exit\n"
                        + "while [[ $1 != -cp ]]; do shift; done; echo \"$2\" >&2\n");
        java.toFile().setExecutable(true);
        String target = directory.resolve("root/examples/target").toString();
        String jar = target + "/djl-kvquant-examples.jar:";
        assertEquals(jar + target + "/lib/*", run(0, Map.of()));
        assertEquals(jar + target + "/lib/*", run(0, Map.of("PYTORCH_FLAVOR", "cpu")));
        assertEquals(jar + target + "/lib/a.jar", run(0, Map.of("PYTORCH_FLAVOR", "cu128")));
    }

    @Test
    void withoutJava() throws Exception {
        assertEquals(
                "kvq: java is missing (it runs kvq); install it, e.g. 'apt install"
                        + " openjdk-17-jdk-headless'",
                failure());
    }

    @Test
    void withOldJava() throws Exception {
        fake("java", "openjdk version \"11.0.20\" 2023-07-18");
        assertEquals(
                "kvq: java is 'openjdk version \"11.0.20\" 2023-07-18', but 17 or later is needed;"
                        + " install it, e.g. 'apt install openjdk-17-jdk-headless', or set JAVA_HOME",
                failure());
    }

    @Test
    void withoutBuildTools() throws Exception {
        fake("java", "openjdk version \"17.0.9\" 2023-10-17");
        fake("javac", "javac 17.0.9");
        assertEquals(
                "kvq: mvn is missing (it builds kvq); install it, e.g. 'apt install maven'",
                failure());
        fake("mvn", "");
        assertEquals(
                "kvq: cmake is missing (it builds the operators); install it, e.g. 'apt install cmake'",
                failure());
        fake("cmake", "");
        fake("make", "");
        assertEquals(
                "kvq: a C++ compiler is missing (it builds the operators); install one, e.g. 'apt"
                        + " install g++', or set CXX",
                failure());
    }

    @Test
    void withoutPythonAndWithAFailingBuild() throws Exception {
        fake("java", "openjdk version \"17.0.9\" 2023-10-17");
        fake("javac", "javac 17.0.9");
        fake("cmake", "");
        fake("make", "");
        fake("c++", "");
        Path mvn = bin.resolve("mvn");
        Files.writeString(mvn, "#!/usr/bin/env bash\necho '[ERROR] no such goal'\nexit 1\n");
        mvn.toFile().setExecutable(true);
        String log = directory.resolve("root/target/kvq-build.log").toString();
        assertEquals(
                "kvq: python3 with venv is missing; the default model can not be fetched without"
                        + " (install it, e.g. 'apt install python3 python3-venv', or use --model)\n"
                        + "kvq: building (a first build takes minutes; log: "
                        + log
                        + ")\n[ERROR] no such goal\nkvq: the build failed; see "
                        + log,
                failure());
    }
}
