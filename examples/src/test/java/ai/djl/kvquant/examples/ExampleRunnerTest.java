/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;
import org.junit.jupiter.api.Test;

/** Mistakes at example programs are told in one line. */
class ExampleRunnerTest {

    private static void assertError(String message, String... args) {
        ByteArrayOutputStream err = new ByteArrayOutputStream();
        int exitCode = ExampleRunner.run(args, new PrintStream(err, true, StandardCharsets.UTF_8));
        assertEquals(message, err.toString(StandardCharsets.UTF_8).strip());
        assertEquals(1, exitCode);
    }

    @Test
    void argumentsAndFiles() {
        assertError(
                "DocumentQuestions: Give a text file and one or more questions.",
                "DocumentQuestions",
                "model");
        assertError(
                "DocumentQuestions: There is no file nosuch.txt.",
                "DocumentQuestions",
                "model",
                "nosuch.txt",
                "q");
    }

    @Test
    void aClientWithoutServer() throws IOException {
        int port;
        try (ServerSocket socket = new ServerSocket(0)) {
            port = socket.getLocalPort();
        }
        String url = "http://127.0.0.1:" + port;
        assertError(
                "ServedChat: No server answers at "
                        + url
                        + "; start one as examples/serving/README.md says, or give its URL.",
                "ServedChat",
                url);
    }
}
