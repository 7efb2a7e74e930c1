/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import ai.djl.inference.streaming.ChunkedBytesSupplier;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.translate.TranslateException;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** Hands requests of HTTP to a model and its responses back, as DJL Serving does. */
final class HttpBridge implements AutoCloseable {

    private final ServedModel served;
    private final HttpServer server;
    private final ExecutorService threads = Executors.newCachedThreadPool();

    HttpBridge(ServedModel served) throws IOException {
        this.served = served;
        server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        server.createContext("/", this::handle);
        server.setExecutor(threads);
        server.start();
    }

    String url() {
        return "http://127.0.0.1:" + server.getAddress().getPort();
    }

    private void handle(HttpExchange exchange) throws IOException {
        try (exchange) {
            Input input = new Input();
            exchange.getRequestHeaders()
                    .forEach((name, values) -> input.addProperty(name, values.get(0)));
            input.add("data", exchange.getRequestBody().readAllBytes());
            send(served.start(input), exchange);
        } catch (TranslateException | InterruptedException e) {
            throw new IOException(e);
        }
    }

    /** Status and headers are those of the time when the first chunk is there. */
    private static void send(Output output, HttpExchange exchange)
            throws IOException, InterruptedException {
        if (!(output.getData() instanceof ChunkedBytesSupplier data)) {
            byte[] body = output.getData().getAsBytes();
            begin(output, exchange, body.length);
            exchange.getResponseBody().write(body);
            return;
        }
        byte[] chunk = data.nextChunk(60, TimeUnit.SECONDS);
        begin(output, exchange, 0);
        OutputStream out = exchange.getResponseBody();
        out.write(chunk);
        while (data.hasNext()) {
            out.flush();
            out.write(data.nextChunk(60, TimeUnit.SECONDS));
        }
    }

    private static void begin(Output output, HttpExchange exchange, int length) throws IOException {
        output.getProperties()
                .forEach((name, value) -> exchange.getResponseHeaders().set(name, value));
        exchange.sendResponseHeaders(output.getCode(), length);
    }

    @Override
    public void close() {
        server.stop(0);
        threads.shutdownNow();
    }
}
