/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.inference.streaming.ChunkedBytesSupplier;
import ai.djl.kvquant.generate.CacheUsage;
import ai.djl.kvquant.generate.FinishReason;
import ai.djl.kvquant.generate.GeneratedToken;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.SubmissionListener;
import ai.djl.modality.Output;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.function.LongSupplier;

/**
 * Fills a response while its request is decoded. Whoever reads it waits for its first chunk, before
 * which status and headers may still change: an error then has a status of its own, later it is the
 * last event.
 */
final class ResponseStream implements SubmissionListener {

    private static final String CONTENT_TYPE = "Content-Type";
    private static final String HEADER = "x-kvquant-kv-";

    private final ServingRequest request;
    private final ResponseFormat format;
    private final GenerationResult[] results;
    private final Output output = new Output();
    private final ChunkedBytesSupplier data = new ChunkedBytesSupplier();
    private final Silence silence;
    private final LongSupplier nanoTime;
    private int going;
    private String remainder = "";
    private boolean answering;
    private boolean begun;

    /** When something is to be sent, even if there is nothing to tell. */
    private long dueNanos;

    /**
     * How long nothing is sent, since readers give up then: DJL after a minute, DJL Serving after
     * two.
     *
     * @param before while there is no token: as long as an error is to have a status of its own
     * @param between behind a token, or what was sent last
     */
    record Silence(Duration before, Duration between) {}

    ResponseStream(ServingRequest request, ResponseFormat format, int prompts, Silence silence) {
        this(request, format, prompts, silence, System::nanoTime);
    }

    ResponseStream(
            ServingRequest request,
            ResponseFormat format,
            int prompts,
            Silence silence,
            LongSupplier nanoTime) {
        this.request = request;
        this.format = format;
        this.silence = silence;
        this.nanoTime = nanoTime;
        dueNanos = nanoTime.getAsLong() + silence.before.toNanos();
        results = new GenerationResult[prompts];
        going = prompts;
        output.addProperty(CONTENT_TYPE, format.contentType());
        output.add(data);
    }

    /** The response, of which nothing may be there yet. */
    Output output() {
        return output;
    }

    /** A response that is an error and nothing else. */
    static Output failed(String body, ServingError error) {
        Output output = new Output(error.code(), error.reason());
        output.addProperty(CONTENT_TYPE, "application/json");
        output.add(body.getBytes(StandardCharsets.UTF_8));
        return output;
    }

    @Override
    public boolean onToken(GeneratedToken token) {
        String text = format.token(token);
        if (!text.isEmpty()) {
            send(text, false);
        } else if (!answering) {
            dueNanos -= Math.max(0, dueNanos - nextDue());
        }
        answering = true;
        return true;
    }

    private long nextDue() {
        return nanoTime.getAsLong() + silence.between.toNanos();
    }

    @Override
    public void onPulse() {
        if (nanoTime.getAsLong() - dueNanos >= 0) {
            send(format.keepAlive(), false);
        }
    }

    @Override
    public void onFinish(int sequence, String rest, GenerationResult result) {
        results[sequence] = result;
        remainder = sequence == 0 ? rest : remainder;
        if (--going == 0) {
            end();
        }
    }

    private void end() {
        List<GenerationResult> all = List.of(results);
        if (all.stream().anyMatch(r -> r.finishReason() == FinishReason.CANCELLED)) {
            setError(new ServingError(ServingError.CLIENT_GONE, "The client is gone."));
            send("", true);
            return;
        }
        ServingError error = cacheFull();
        if (error != null) {
            setError(error);
        }
        addUsage(all.get(0).cacheUsage());
        send(format.end(all, remainder, error), true);
    }

    /** What the cache had no room for, even alone or for the moment; null if it had. */
    private ServingError cacheFull() {
        return Arrays.stream(results)
                .filter(r -> r.finishReason() == FinishReason.CACHE_FULL)
                .findFirst()
                .map(ServingError::cacheFull)
                .orElse(null);
    }

    private void addUsage(CacheUsage usage) {
        if (usage != null && !begun) {
            output.addProperty(HEADER + "dtype", usage.dtype());
            output.addProperty(HEADER + "bytes", Long.toString(usage.bytes()));
            output.addProperty(HEADER + "fp16-bytes", Long.toString(usage.fp16Bytes()));
        }
    }

    @Override
    public void onError(Throwable cause) {
        ServingError error = ServingError.logged(cause);
        boolean first = !begun;
        if (first) {
            setError(error);
            output.addProperty(CONTENT_TYPE, "application/json");
        }
        send(first ? request.error(error) : format.fail(error), true);
    }

    /** As long as no byte is sent. */
    private void setError(ServingError error) {
        if (!begun) {
            output.setCode(error.code());
            output.setMessage(error.reason());
        }
    }

    private void send(String text, boolean last) {
        begun = true;
        dueNanos = nextDue();
        data.appendContent(text.getBytes(StandardCharsets.UTF_8), false);
        if (last) {
            // DJL tells the end before it appends what comes with it, which readers may miss.
            data.appendContent(new byte[0], true);
        }
    }
}
