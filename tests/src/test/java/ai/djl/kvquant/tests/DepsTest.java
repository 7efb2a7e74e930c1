/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The extension works from deps/ of DJL Serving, which has DJL itself on its class path. */
class DepsTest {

    /** The jars that a distribution of DJL Serving has. */
    private static final List<String> DISTRIBUTION =
            List.of(
                    "api-",
                    "pytorch-engine-",
                    "tokenizers-",
                    "gson-",
                    "jna-",
                    "slf4j-",
                    "commons-compress-",
                    "commons-codec-",
                    "commons-io-",
                    "commons-lang3-",
                    "error_prone_annotations-");

    private static final String REQUEST =
            "{\"inputs\": \"w5 w6\", \"parameters\": {\"max_new_tokens\": 6}}";

    @TempDir Path directory;

    private static boolean isOfDistribution(String entry) {
        String name = Path.of(entry).getFileName().toString();
        return DISTRIBUTION.stream().anyMatch(name::startsWith);
    }

    private static String ownClasses() throws Exception {
        return Path.of(DepsServer.class.getProtectionDomain().getCodeSource().getLocation().toURI())
                .toString();
    }

    @Test
    void worksFromAChildClassLoader() throws Exception {
        SmallModel.in(directory)
                .tokenizer()
                .write(
                        "serving.properties",
                        """
                        engine=KvQuant
                        translatorFactory=ai.djl.kvquant.translate.KvQuantTranslatorFactory
                        option.kv_cache_dtype=rotatekv2
                        option.kv_cache_tokens=512
                        """);
        List<String> classPath =
                Arrays.asList(System.getProperty("java.class.path").split(File.pathSeparator));
        String own = ownClasses();
        String parent =
                classPath.stream()
                        .filter(DepsTest::isOfDistribution)
                        .collect(Collectors.joining(File.pathSeparator));
        String deps =
                classPath.stream()
                        .filter(entry -> !entry.equals(own) && !isOfDistribution(entry))
                        .collect(Collectors.joining(File.pathSeparator));
        String output = run(own + File.pathSeparator + parent, deps);
        String expected;
        try (ServedModel served = ServedModel.load(directory)) {
            expected = "response 200 " + served.ask(REQUEST).body();
        }
        assertTrue(output.contains("loader java.net.URLClassLoader"), output);
        assertEquals(
                List.of(expected), output.lines().filter(l -> l.startsWith("response")).toList());
    }

    private String run(String classPath, String deps) throws Exception {
        List<String> command = new ArrayList<>();
        command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
        command.add("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn");
        String library = "ai.djl.kvquant.library";
        if (System.getProperty(library) != null) {
            command.add("-D" + library + "=" + System.getProperty(library));
        }
        command.addAll(List.of("-cp", classPath, DepsServer.class.getName(), deps));
        command.addAll(List.of(directory.toString(), REQUEST));
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        assertEquals(0, process.waitFor(), output);
        return output;
    }
}
