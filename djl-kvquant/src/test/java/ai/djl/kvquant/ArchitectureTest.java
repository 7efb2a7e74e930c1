/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant;

import static com.tngtech.archunit.base.DescribedPredicate.not;
import static com.tngtech.archunit.core.domain.JavaClass.Predicates.resideInAPackage;
import static com.tngtech.archunit.core.domain.properties.HasName.Predicates.name;
import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.noClasses;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.tngtech.archunit.core.domain.JavaClasses;
import com.tngtech.archunit.core.importer.ClassFileImporter;
import com.tngtech.archunit.core.importer.ImportOption;
import com.tngtech.archunit.lang.ArchRule;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Predicate;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** What must never import what: the rules that keep the parts of the project apart. */
class ArchitectureTest {

    private static final String ROOT = "ai.djl.kvquant.";
    private static final Path REPOSITORY = Path.of("").toAbsolutePath().getParent();
    private static final Pattern NATIVE_FOREIGN_HEADER =
            Pattern.compile("#\\s*include\\s*[<\"]((torch|ATen|c10|caffe2)/|jni\\.h)");
    // Not behind a quote: the name of a system property is no class. DJL's model zoo is for users.
    private static final Pattern NOT_PUBLIC_API =
            Pattern.compile(
                    "(?<!\")\\bai\\.djl\\.(pytorch(?!\\.zoo\\b)|kvquant\\.torch|kvquant\\.([a-z]+\\.)*internal)\\b");
    private static JavaClasses classes;

    @BeforeAll
    static void importClasses() {
        classes =
                new ClassFileImporter()
                        .withImportOption(ImportOption.Predefined.DO_NOT_INCLUDE_TESTS)
                        .importPackages("ai.djl.kvquant");
    }

    @Test
    void onlyTorchUsesThePyTorchEngine() {
        check(
                noClasses()
                        .that()
                        .resideOutsideOfPackage(ROOT + "torch..")
                        .should()
                        .dependOnClassesThat()
                        .resideInAPackage("ai.djl.pytorch.."),
                "DJL's PyTorch internals change between releases: one package adapts to them");
    }

    @Test
    void cacheKnowsNoModelAndNoTranslator() {
        check(
                noClasses()
                        .that()
                        .resideInAPackage(ROOT + "cache..")
                        .should()
                        .dependOnClassesThat()
                        .resideInAnyPackage(
                                ROOT + "llama..",
                                ROOT + "translate..",
                                ROOT + "generate..",
                                ROOT + "engine..",
                                ROOT + "evaluate..",
                                ROOT + "calibrate..",
                                ROOT + "safetensors.."),
                "the cache works for any model that hands it queries, keys and values");
    }

    @Test
    void safetensorsKnowsNothingOfOurs() {
        check(
                noClasses()
                        .that()
                        .resideInAPackage(ROOT + "safetensors..")
                        .should()
                        .dependOnClassesThat(
                                resideInAPackage("ai.djl.kvquant..")
                                        .and(not(resideInAPackage(ROOT + "safetensors..")))),
                "a file format knows nothing of what is kept in it");
    }

    @Test
    void generateKnowsNoModelAndNoEngine() {
        check(
                noClasses()
                        .that()
                        .resideInAPackage(ROOT + "generate..")
                        .should()
                        .dependOnClassesThat()
                        .resideInAnyPackage(
                                ROOT + "llama..",
                                ROOT + "translate..",
                                ROOT + "engine..",
                                ROOT + "torch.."),
                "the generation loop works for any LanguageModel");
    }

    @Test
    void generateKnowsOfTheCacheOnlyThatItCanBeFull() {
        check(
                noClasses()
                        .that()
                        .resideInAPackage(ROOT + "generate..")
                        .should()
                        .dependOnClassesThat(
                                resideInAPackage(ROOT + "cache..")
                                        .and(not(name(ROOT + "cache.CacheFullException")))),
                "the generation loop knows no bits, groups or pages");
    }

    @Test
    void nativeSourcesIncludeNoTorchAndNoJniHeader() throws IOException {
        assertEquals(
                List.of(),
                matches(NATIVE_FOREIGN_HEADER, "native-ops/src", path -> true),
                "the operator library needs no header of torch and none of Java");
    }

    @Test
    void examplesUseThePublicApiOnly() throws IOException {
        assertEquals(
                List.of(),
                matches(NOT_PUBLIC_API, "examples/src", ArchitectureTest::isJava),
                "examples show what a user can write");
    }

    /** Contract tests and benchmarks call single operators; all other tests are users. */
    @Test
    void endToEndTestsUseThePublicApiOnly() throws IOException {
        assertEquals(
                List.of(),
                matches(
                        NOT_PUBLIC_API,
                        "tests/src",
                        path ->
                                isJava(path)
                                        && !path.toString().contains("/contract/")
                                        && !path.toString().contains("/benchmark/")),
                "end-to-end tests do what a user does");
    }

    @Test
    void patternsFindWhatTheyAreFor() {
        assertTrue(NATIVE_FOREIGN_HEADER.matcher("#include <torch/library.h>").find());
        assertTrue(NATIVE_FOREIGN_HEADER.matcher("# include \"ATen/ATen.h\"").find());
        assertTrue(NATIVE_FOREIGN_HEADER.matcher("#include <jni.h>").find());
        assertTrue(NOT_PUBLIC_API.matcher("import ai.djl.pytorch.engine.PtEngine;").find());
        assertTrue(NOT_PUBLIC_API.matcher("ai.djl.kvquant.torch.Module m;").find());
        assertTrue(NOT_PUBLIC_API.matcher("import ai.djl.kvquant.cache.internal.A;").find());
    }

    private static void check(ArchRule rule, String reason) {
        rule.because(reason).allowEmptyShould(true).check(classes);
    }

    private static boolean isJava(Path path) {
        return path.toString().endsWith(".java");
    }

    /** Returns the lines, as {@code file:line: text}, of the files in a folder that match. */
    private static List<String> matches(Pattern pattern, String folder, Predicate<Path> filter)
            throws IOException {
        List<String> found = new ArrayList<>();
        for (Path path : files(folder, filter)) {
            List<String> lines = Files.readAllLines(path);
            for (int i = 0; i < lines.size(); i++) {
                if (pattern.matcher(lines.get(i)).find()) {
                    Path relative = REPOSITORY.relativize(path);
                    found.add(relative + ":" + (i + 1) + ": " + lines.get(i).strip());
                }
            }
        }
        return found;
    }

    private static List<Path> files(String folder, Predicate<Path> filter) throws IOException {
        Path root = REPOSITORY.resolve(folder);
        if (!Files.isDirectory(root)) {
            return List.of();
        }
        try (Stream<Path> paths = Files.walk(root)) {
            return paths.filter(Files::isRegularFile).filter(filter).sorted().toList();
        }
    }
}
