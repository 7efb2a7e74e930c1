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
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
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

    @Test
    void checkServerWithoutServer() throws Exception {
        int port;
        try (ServerSocket socket = new ServerSocket(0)) {
            port = socket.getLocalPort();
        }
        String url = "http://127.0.0.1:" + port;
        Run run = check(url);
        assertEquals(
                "check-server: " + url + " does not answer: [Errno 111] Connection refused",
                run.output.strip());
        assertEquals(1, run.exitCode);
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

    private static void append(Path file, String text) throws IOException {
        Files.writeString(file, text, StandardOpenOption.APPEND);
    }

    /** What is ours is brought up to date; what somebody else wrote is not touched in silence. */
    @Test
    void serverHomeAgain() throws Exception {
        String script = examples().toString();
        Path model = Files.createDirectory(directory.resolve("tiny"));
        SmallModel.in(model).tokenizer();
        Path home = directory.resolve("home");
        String[] command = {script, "--model", model.toString(), home.toString()};
        assertEquals(0, run(command).exitCode);
        Path deps = home.resolve("deps");
        Path lib = directory.resolve("examples/target/lib");
        for (String name : List.of("djl-kvquant-", "jinjava-", "pytorch-jni-")) {
            Files.move(lib.resolve(name + "1.jar"), lib.resolve(name + "2.jar"));
        }
        Files.createFile(deps.resolve("djl-kvquant-0.jar"));
        Files.createFile(deps.resolve("jinjava-0.jar"));
        append(deps.resolve("pytorch-jni-1.jar"), "changed");
        Path copy = home.resolve("models/tiny");
        append(copy.resolve("serving.properties"), "option.max_new_tokens=7\n");
        append(copy.resolve("tokenizer.json"), " ");
        String[] again = {
            script, "--model", model.toString(), "--kv-cache-dtype", "int4", "" + home
        };
        Run run = run(again);
        assertEquals(0, run.exitCode, run.output);
        assertEquals(
                List.of(
                        "djl-kvquant-2.jar",
                        "djl-kvquant-native-1.jar",
                        // Of which nothing says that they are ours, or still what we wrote.
                        "jinjava-0.jar",
                        "jinjava-2.jar",
                        "pytorch-jni-1.jar",
                        "pytorch-jni-2.jar",
                        "pytorch-native-cpu-1.jar"),
                names(deps));
        assertTrue(run.output.contains("pytorch-jni-1.jar was changed and is kept"), run.output);
        String kept = Files.readString(copy.resolve("serving.properties"));
        assertTrue(kept.contains("kv_cache_dtype=int2") && kept.contains("=7\n"), kept);
        String next = Files.readString(copy.resolve("serving.properties.new"));
        assertTrue(next.contains("kv_cache_dtype=int4") && !next.contains("=7\n"), next);
        assertTrue(run.output.contains("serving.properties was changed and is kept"), run.output);
        assertTrue(run.output.contains("kept as models/tiny/tokenizer.json.old"), run.output);
        assertEquals(
                Files.readString(model.resolve("tokenizer.json")),
                Files.readString(copy.resolve("tokenizer.json")));

        // Left alone, a file is ours to change, and nothing is said.
        Files.delete(copy.resolve("serving.properties"));
        assertFalse(run(command).output.contains("changed and is kept; what"));
        assertFalse(run(again).output.contains("changed and is kept; what"));
        kept = Files.readString(copy.resolve("serving.properties"));
        assertTrue(kept.contains("kv_cache_dtype=int4"), kept);
        assertFalse(Files.exists(copy.resolve("serving.properties.new")));
    }

    /** One line of the file that server-home writes is changed between the two. */
    @Test
    void cacheBytes() throws Exception {
        JsonObject config = new JsonObject();
        config.addProperty("chat_template", "{{ messages[0].content }}");
        SmallModel files =
                SmallModel.in(directory)
                        .tokenizer()
                        .config("max_position_embeddings", "8192")
                        .write("tokenizer_config.json", config.toString());
        String properties = Files.readString(SERVING.resolve(PROPERTIES));
        String line = "option.kv_cache_dtype=int2";
        assertTrue(properties.contains(line));
        Path saved = directory.resolve("saved.json");
        files.write("serving.properties", properties.replace(line, "option.kv_cache_dtype=auto"));
        Run auto = cacheBytes("--save", saved.toString());
        assertEquals(0, auto.exitCode, auto.output);
        assertTrue(auto.output.startsWith("auto takes "), auto.output);
        Run same = cacheBytes("--against", saved.toString());
        assertEquals(1, same.exitCode, same.output);
        assertTrue(same.output.contains("FAILED: fp16 would take less than 5"), same.output);

        files.write("serving.properties", properties);
        Run int2 = cacheBytes("--against", saved.toString());
        assertEquals(0, int2.exitCode, int2.output);
        assertTrue(int2.output.contains("auto took "), int2.output);
        assertTrue(int2.output.contains("the form of the responses is the same"), int2.output);
        // A form that is another is found.
        Files.writeString(saved, Files.readString(saved).replace("finish_reason", "reason"));
        Run other = cacheBytes("--against", saved.toString());
        assertEquals(1, other.exitCode, other.output);
        assertTrue(other.output.contains("FAILED: another form of chat"), other.output);
    }

    private Run cacheBytes(String... arguments) throws Exception {
        try (ServedModel served = ServedModel.load(directory);
                HttpBridge bridge = new HttpBridge(served)) {
            List<String> command = new ArrayList<>();
            command.addAll(List.of("python3", SERVING.resolve("cache-bytes").toString()));
            command.addAll(List.of("--url", bridge.url()));
            command.addAll(List.of(arguments));
            return run(command.toArray(String[]::new));
        }
    }

    @Test
    void cacheBytesWithoutAServer() throws Exception {
        String script = SERVING.resolve("cache-bytes").toString();
        Run run = run("python3", script, "--url", "http://127.0.0.1:1");
        assertEquals(1, run.exitCode, run.output);
        assertTrue(run.output.contains("http://127.0.0.1:1 does not answer"), run.output);
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
