/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.EnabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;

/** The texts of the accuracy report: always the same, and without a wrong calculation. */
@EnabledOnOs(value = OS.LINUX, disabledReason = "the script is for Linux")
class EvaluationTextsTest {

    /** A report names these; other texts need other figures in it. */
    private static final String PROBLEMS_SHA256 =
            "00897e7079f90da63ab4a80decb449a96aed7c6353a8228fd4b5d78d4d0db452";

    private static final String SOURCES_SHA256 =
            "3791734bc491afd155cfea501d0c7a9689cbcc4d982edd7d568d5e8867f82d1b";

    private static final Path PYTHON = Path.of("src/main/python");
    private static final Pattern EQUATION =
            Pattern.compile("((?:[$\\d.-]+ [-+*/] )+[$\\d.]+) = ([$\\d.-]*\\d)");

    @TempDir private Path directory;

    private record Run(int exitCode, String output) {}

    private Run run(Path script) throws Exception {
        ProcessBuilder builder = new ProcessBuilder(script.toString(), directory.toString());
        Process process = builder.redirectErrorStream(true).start();
        process.getOutputStream().close();
        String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        return new Run(process.waitFor(), output);
    }

    @Test
    void theTextsAreAlwaysTheSame() throws Exception {
        Run run = run(Path.of("evaluation-texts").toAbsolutePath());
        assertEquals(0, run.exitCode(), run.output());
        assertEquals(
                List.of(
                        PROBLEMS_SHA256 + "  " + directory.resolve("word-problems.txt"),
                        SOURCES_SHA256 + "  " + directory.resolve("source-code.txt")),
                run.output().lines().toList());
        String sources = Files.readString(directory.resolve("source-code.txt"));
        assertTrue(sources.startsWith("package ai.djl.kvquant"));
        assertFalse(sources.contains("Licensed under"));
        check(Files.readString(directory.resolve("word-problems.txt")));
    }

    private static void check(String text) throws IOException {
        List<String> templates = Files.readAllLines(PYTHON.resolve("word_problems.txt"));
        assertTrue(templates.stream().filter(line -> line.startsWith("Q: ")).count() >= 40);
        String[] problems = text.split("\n\n");
        assertEquals(problems.length, new HashSet<>(Arrays.asList(problems)).size());
        for (String problem : problems) {
            assertTrue(problem.matches("(?s)\\w+: [^\n]+\nAnswer: .+[.]\\s*"), problem);
            assertFalse(problem.matches("(?s).*[\\[\\]{}|].*"), problem);
        }
        Matcher equation = EQUATION.matcher(text);
        int equations = 0;
        for (; equation.find(); ++equations) {
            double value = sum(equation.group(1).replace("$", ""));
            double stated = Double.parseDouble(equation.group(2).replace("$", ""));
            assertEquals(value, stated, 1e-9, equation.group());
        }
        assertEquals(text.split(" = ", -1).length - 1, equations);
    }

    /** Products before sums, from left to right. */
    private static double sum(String terms) {
        String[] parts = terms.split(" (?=[-+] )");
        double sum = product(parts[0]);
        for (int i = 1; i < parts.length; ++i) {
            double value = product(parts[i].substring(2));
            sum += parts[i].startsWith("+") ? value : -value;
        }
        return sum;
    }

    private static double product(String factors) {
        String[] parts = factors.split(" ");
        double product = Double.parseDouble(parts[0]);
        for (int i = 1; i < parts.length; i += 2) {
            double factor = Double.parseDouble(parts[i + 1]);
            product = parts[i].equals("*") ? product * factor : product / factor;
        }
        return product;
    }

    @Test
    void sourcesComeFromAClone() throws Exception {
        Path script = Files.copy(Path.of("evaluation-texts"), directory.resolve("copy"));
        Path python = Files.createDirectories(directory.resolve("src/main/python"));
        for (String name : List.of("evaluation_texts.py", "word_problems.txt")) {
            Files.copy(PYTHON.resolve(name), python.resolve(name));
        }
        script.toFile().setExecutable(true);
        Run run = run(script);
        assertEquals(1, run.exitCode(), run.output());
        assertTrue(run.output().contains("run this in a full clone"), run.output());
    }
}
