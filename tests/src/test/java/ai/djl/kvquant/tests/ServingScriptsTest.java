/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonObject;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Properties;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** The scripts of examples/serving. The timeout ends what would hang; it measures nothing. */
@Timeout(value = 300, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
class ServingScriptsTest {

    private static final Path SERVING = DefaultModel.repositoryRoot().resolve("examples/serving");

    @TempDir Path directory;

    /** What a program printed, and its exit code. */
    private record Run(int exitCode, String output) {}

    private static Run run(String... command) throws Exception {
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        return new Run(process.waitFor(), output);
    }

    private static Run check(String url) throws Exception {
        String script = SERVING.resolve("check-server").toString();
        return run("python3", script, "--url", url, "--requests", "48");
    }

    @Test
    void checkServer() throws Exception {
        JsonObject config = new JsonObject();
        config.addProperty(
                "chat_template", "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}");
        SmallModel.in(directory)
                .tokenizer()
                .write("tokenizer_config.json", config.toString())
                .write("serving.properties", Files.readString(SERVING.resolve(PROPERTIES)));
        try (ServedModel served = ServedModel.load(directory);
                HttpBridge bridge = new HttpBridge(served)) {
            Run run = check(bridge.url());
            assertEquals(0, run.exitCode, run.output);
            assertTrue(run.output.startsWith("48 requests, 0 failed"), run.output);
        }
    }

    private static final String PROPERTIES = "model/serving.properties";

    @Test
    void checkServerFindsFailures() throws Exception {
        HttpServer broken =
                HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        broken.createContext(
                "/",
                exchange -> {
                    exchange.getRequestBody().readAllBytes();
                    byte[] body = "{}".getBytes(StandardCharsets.UTF_8);
                    exchange.sendResponseHeaders(200, body.length);
                    exchange.getResponseBody().write(body);
                    exchange.close();
                });
        broken.start();
        try {
            Run run = check("http://127.0.0.1:" + broken.getAddress().getPort());
            assertEquals(1, run.exitCode, run.output);
            // All but those that leave before there is a response.
            assertTrue(run.output.contains("48 requests, 42 failed"), run.output);
        } finally {
            broken.stop(0);
        }
    }

    private static Path executable(Path file, String text) throws IOException {
        Files.writeString(file, text);
        assertTrue(file.toFile().setExecutable(true));
        return file;
    }

    /** A tree in which the launcher has nothing to build. */
    private Path examples() throws IOException {
        Path examples = Files.createDirectories(directory.resolve("examples"));
        executable(examples.resolve("kvq"), "#!/bin/sh\nexit 0\n");
        Path lib = Files.createDirectories(examples.resolve("target/lib"));
        for (String jar :
                List.of(
                        "djl-kvquant-1.jar",
                        "djl-kvquant-native-1.jar",
                        "jinjava-1.jar",
                        "api-1.jar",
                        "gson-1.jar",
                        "slf4j-simple-1.jar",
                        "picocli-1.jar",
                        "pytorch-engine-1.jar",
                        "pytorch-jni-1.jar",
                        "pytorch-native-cpu-1.jar")) {
            Files.createFile(lib.resolve(jar));
        }
        Path serving = Files.createDirectories(examples.resolve("serving"));
        try (Stream<Path> files = Files.walk(SERVING)) {
            for (Path file : files.toList()) {
                Path target = serving.resolve(SERVING.relativize(file).toString());
                if (!file.equals(SERVING)) {
                    Files.copy(file, target);
                }
            }
        }
        return serving.resolve("server-home");
    }

    private static List<String> names(Path folder) throws IOException {
        try (Stream<Path> files = Files.list(folder)) {
            return files.map(f -> f.getFileName().toString()).sorted().toList();
        }
    }

    @Test
    void serverHome() throws Exception {
        Path script = examples();
        Path model = Files.createDirectory(directory.resolve("tiny"));
        SmallModel.in(model).tokenizer();
        Path home = directory.resolve("home");
        Run run =
                run(
                        script.toString(),
                        "--model",
                        model.toString(),
                        "--kv-cache-dtype",
                        "rotatekv4/rotatekv2",
                        home.toString());
        assertEquals(0, run.exitCode, run.output);
        assertEquals(
                List.of(
                        "djl-kvquant-1.jar",
                        "djl-kvquant-native-1.jar",
                        "jinjava-1.jar",
                        "pytorch-jni-1.jar",
                        "pytorch-native-cpu-1.jar"),
                names(home.resolve("deps")));
        assertEquals(List.of("config.properties"), names(home.resolve("conf")));
        Path copy = home.resolve("models/tiny");
        Properties properties = new Properties();
        try (var reader = Files.newBufferedReader(copy.resolve("serving.properties"))) {
            properties.load(reader);
        }
        assertEquals("KvQuant", properties.getProperty("engine"));
        assertEquals("rotatekv4/rotatekv2", properties.getProperty("option.kv_cache_dtype"));
        try (ServedModel served = ServedModel.load(copy)) {
            assertEquals(200, served.ask("{\"inputs\": \"w5\"}").code());
        }
        assertTrue(run.output.contains("MODEL_SERVER_HOME=" + home), run.output);

        run(script.toString(), "--without-natives", "--model", model.toString(), home + "2");
        assertFalse(Files.exists(directory.resolve("home2/deps/pytorch-jni-1.jar")));
    }

    @Test
    void serverHomeTellsWhatIsWrong() throws Exception {
        String script = examples().toString();
        String home = directory.resolve("home").toString();
        assertEquals(2, run(script).exitCode);
        assertEquals(
                "server-home: unknown option --x; see server-home --help",
                run(script, "--x", home).output.strip());
        assertEquals(
                "server-home: --model needs a value", run(script, home, "--model").output.strip());
        Path empty = Files.createDirectory(directory.resolve("empty"));
        assertEquals(
                "server-home: " + empty + " has no config.json; give a HuggingFace directory",
                run(script, "--model", empty.toString(), home).output.strip());
    }
}
