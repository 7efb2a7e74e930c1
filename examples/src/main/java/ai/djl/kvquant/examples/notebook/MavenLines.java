/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples.notebook;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * The lines {@code %maven group:artifact:version} of a cell. What is on the class path already
 * stays as it is; Maven resolves the rest.
 */
final class MavenLines {

    private static final Pattern LINE =
            Pattern.compile("%maven\\s+([\\w.-]+):([\\w.-]+):([\\w.-]+)");
    private static final String POM =
            """
            <project>
              <modelVersion>4.0.0</modelVersion>
              <groupId>notebook</groupId><artifactId>notebook</artifactId><version>1</version>
              <dependencies>
                <dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version></dependency>
              </dependencies>
            </project>
            """;

    private final String classPath;

    MavenLines(String classPath) {
        this.classPath = classPath;
    }

    /** Returns what a line adds to the class path: nothing if it is there. */
    String resolve(String line) throws IOException, InterruptedException {
        Matcher matcher = LINE.matcher(line.strip());
        if (!matcher.matches()) {
            throw new IOException(
                    "'" + line + "' is not known here; allowed: %maven group:artifact:version.");
        }
        String artifact = matcher.group(2);
        String version = matcher.group(3);
        for (String entry : classPath.split(File.pathSeparator)) {
            if (isOf(Path.of(entry), artifact, version)) {
                return "";
            }
        }
        return download(POM.formatted(matcher.group(1), artifact, version), line);
    }

    /** A jar, with or without a classifier, or what Maven compiled in this repository. */
    private static boolean isOf(Path entry, String artifact, String version) {
        String name = entry.getFileName() == null ? "" : entry.getFileName().toString();
        String jar = artifact + "-" + version;
        return name.equals(jar + ".jar")
                || name.startsWith(jar + "-")
                || entry.endsWith(Path.of(artifact, "target", "classes"));
    }

    private static String download(String pom, String line)
            throws IOException, InterruptedException {
        Path directory = Files.createTempDirectory("notebook");
        Path file = Files.writeString(directory.resolve("pom.xml"), pom);
        Path output = directory.resolve("class-path.txt");
        try {
            Process maven =
                    new ProcessBuilder(
                                    "mvn",
                                    "-q",
                                    "-B",
                                    "-f",
                                    file.toString(),
                                    "dependency:build-classpath",
                                    "-Dmdep.outputFile=" + output)
                            .redirectErrorStream(true)
                            .start();
            String log = new String(maven.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
            if (maven.waitFor() != 0 || !Files.exists(output)) {
                String reason =
                        log.lines().filter(l -> l.contains("ERROR")).findFirst().orElse(log);
                throw new IOException("Maven could not resolve '" + line + "': " + reason.strip());
            }
            return Files.readString(output).strip();
        } finally {
            Files.deleteIfExists(output);
            Files.deleteIfExists(file);
            Files.deleteIfExists(directory);
        }
    }
}
