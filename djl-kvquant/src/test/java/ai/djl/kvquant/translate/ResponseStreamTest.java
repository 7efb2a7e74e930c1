/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.inference.streaming.ChunkedBytesSupplier;
import ai.djl.kvquant.generate.FinishReason;
import ai.djl.kvquant.generate.GeneratedToken;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.WaitTooLongException;
import com.google.gson.JsonParser;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What a response sends while there is nothing to tell. */
class ResponseStreamTest {

    private static final String LMI = "{\"inputs\": \"x\"}";
    private static final String LINES = "{\"inputs\": \"x\", \"stream\": true}";
    private static final String CHAT =
            "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"stream\": true}";

    private long seconds;

    private ResponseStream stream(String body, String formatter) {
        JsonFields fields = JsonFields.parse(body.getBytes(StandardCharsets.UTF_8));
        ServingRequest request =
                fields.has("messages") ? ChatRequest.read(fields) : LmiRequest.read(fields);
        ResponseFormat format =
                request.format(new ServingRequest.FormatOptions("r", "m", "", formatter, null));
        ResponseStream.Silence silence =
                new ResponseStream.Silence(Duration.ofSeconds(115), Duration.ofSeconds(30));
        return new ResponseStream(
                request, format, 1, silence, () -> Duration.ofSeconds(seconds).toNanos());
    }

    private static GeneratedToken token(int index, FinishReason reason) {
        return new GeneratedToken(0, index, 5, "word", -1f, List.of(), reason);
    }

    private static GenerationResult result(FinishReason reason) {
        return result(reason, false);
    }

    private static GenerationResult result(FinishReason reason, boolean retryable) {
        return new GenerationResult(
                new int[] {5, 5},
                "wordword",
                reason,
                reason == FinishReason.CACHE_FULL ? "full" : "",
                retryable,
                1,
                List.of(),
                List.of(),
                Duration.ZERO,
                0,
                null);
    }

    private void pulseAt(ResponseStream stream, int... times) {
        for (int time : times) {
            seconds = time;
            stream.onPulse();
        }
    }

    /** What has been sent since the last call. */
    private static List<String> sent(ResponseStream stream) {
        ChunkedBytesSupplier data = (ChunkedBytesSupplier) stream.output().getData();
        List<String> chunks = new ArrayList<>();
        for (byte[] chunk = data.pollChunk(); chunk != null; chunk = data.pollChunk()) {
            chunks.add(new String(chunk, StandardCharsets.UTF_8));
        }
        return chunks;
    }

    /** Until there is a token, an error is to have a status of its own. */
    @Test
    void nothingIsSentBeforeAFirstTokenUntilReadersGiveUp() {
        ResponseStream stream = stream(LINES, "jsonlines");
        pulseAt(stream, 1, 30, 60, 114);
        stream.onError(new WaitTooLongException("late"));
        assertEquals(503, stream.output().getCode());
        assertEquals(List.of("{\"error\":\"late\",\"code\":503}", ""), sent(stream));

        ResponseStream late = stream(LINES, "jsonlines");
        pulseAt(late, 300);
        assertEquals(List.of(" "), sent(late));
        late.onError(new WaitTooLongException("late"));
        assertEquals(200, late.output().getCode());
        assertTrue(sent(late).get(0).contains("\"code\":503"));
    }

    @Test
    void silentLinesGetWhiteSpaceBeforeTheNextOne() {
        ResponseStream stream = stream(LINES, "jsonlines");
        stream.onToken(token(0, null));
        pulseAt(stream, 29, 30, 31, 59, 60);
        stream.onToken(token(1, FinishReason.LENGTH));
        pulseAt(stream, 100);
        stream.onFinish(0, "", result(FinishReason.LENGTH));
        List<String> chunks = sent(stream);
        assertEquals(List.of(" ", " "), chunks.subList(1, 3));
        // A chunk for DJL Serving, but nothing for the client, for whom this would be a line.
        assertEquals(List.of("", "", ""), chunks.subList(4, 7));
        List<String> lines = String.join("", chunks).lines().toList();
        assertEquals(2, lines.size());
        lines.forEach(line -> assertTrue(JsonParser.parseString(line).isJsonObject(), line));
    }

    /** A client that knows {@code data: } alone sees the same events. */
    @ParameterizedTest
    @ValueSource(strings = {CHAT, LINES})
    void silentEventsBegin(String body) {
        ResponseStream stream = stream(body, "sse");
        stream.onToken(token(0, null));
        pulseAt(stream, 30, 60, 90);
        assertEquals(List.of("data: ", " ", " "), sent(stream).subList(1, 4));
        stream.onToken(token(1, FinishReason.LENGTH));
        pulseAt(stream, 120);
        stream.onFinish(0, "", result(FinishReason.LENGTH));
        String rest = String.join("", sent(stream));
        assertTrue(rest.startsWith("{"), rest);
        String[] events = ("data:   " + rest).split("\n\n");
        assertEquals(body.equals(CHAT) ? 2 : 1, events.length);
        assertTrue(JsonParser.parseString(events[0].substring(6)).isJsonObject());
        assertEquals(body.equals(CHAT) ? "data: [DONE]" : events[0], events[events.length - 1]);
    }

    @Test
    void anErrorEndsTheEventThatHasBegun() {
        ResponseStream stream = stream(CHAT, "sse");
        stream.onToken(token(0, null));
        pulseAt(stream, 30);
        stream.onError(new IllegalStateException("broken"));
        String[] events = String.join("", sent(stream)).split("\n\n");
        assertEquals(3, events.length);
        assertTrue(events[1].startsWith("data: {\"error\""), events[1]);
        assertEquals("data: [DONE]", events[2]);
    }

    /** Too large for the cache, or for what others have left of it. */
    @ParameterizedTest
    @CsvSource({"false,413", "true,503"})
    void aFullCacheHasAStatus(boolean retryable, int status) {
        ResponseStream stream = stream(LMI, "jsonlines");
        stream.onFinish(0, "", result(FinishReason.CACHE_FULL, retryable));
        assertEquals(status, stream.output().getCode());
        String body = String.join("", sent(stream));
        assertTrue(body.startsWith("{\"generated_text\":\"wordword\""), body);
        assertTrue(body.contains("\"code\":" + status), body);
    }

    /** It has status and headers of its own until its text has taken long, or all of it. */
    @Test
    void aResponseInOnePieceStaysOne() {
        ResponseStream slow = stream(LMI, "jsonlines");
        seconds = 100;
        slow.onToken(token(0, null));
        pulseAt(slow, 114);
        assertEquals(List.of(), sent(slow));
        pulseAt(slow, 115);
        assertEquals(List.of(" "), sent(slow));

        seconds = 0;
        ResponseStream stream = stream(LMI, "jsonlines");
        seconds = 20;
        stream.onToken(token(0, null));
        seconds = 40;
        stream.onToken(token(0, null));
        pulseAt(stream, 49);
        assertEquals(List.of(), sent(stream));
        pulseAt(stream, 50, 80);
        stream.onFinish(0, "", result(FinishReason.LENGTH));
        String body = String.join("", sent(stream));
        assertEquals("  {\"generated_text\":\"wordword\"}", body);
        assertFalse(stream.output().getProperties().containsKey("x-kvquant-kv-bytes"));
    }
}
