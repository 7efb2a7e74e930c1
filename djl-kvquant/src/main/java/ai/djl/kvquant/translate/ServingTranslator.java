/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.Model;
import ai.djl.kvquant.cache.OptionNames;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.ndarray.NDList;
import ai.djl.translate.Batchifier;
import ai.djl.translate.Translator;
import ai.djl.translate.TranslatorContext;
import java.io.IOException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;

/**
 * Answers requests of DJL Serving in the LMI and the OpenAI chat schema.
 *
 * <p>A request joins the model's running batch and its response is returned at once, as a stream of
 * chunks that fills while it is decoded, so that no worker waits. Options besides those of {@link
 * TextTranslator}: {@code max_wait_seconds}, how long a request may wait for its first token,
 * {@code keep_alive_seconds}, how long a response that has begun is silent before white space is
 * sent, and {@code output_formatter}: jsonlines or sse, for streams of the LMI schema.
 */
final class ServingTranslator implements Translator<Input, Output> {

    private static final String INPUT = "input";
    private static final String MAX_WAIT = "max_wait_seconds";
    private static final String FORMATTER = "output_formatter";

    private static final String KEEP_ALIVE = "keep_alive_seconds";
    private static final OptionNames NAMES =
            new OptionNames(List.of(MAX_WAIT, FORMATTER, KEEP_ALIVE));

    /** A little less than DJL Serving itself waits for a chunk. */
    private static final String DEFAULT_WAIT = "110";

    /** Half of the time after which many a proxy closes a silent connection. */
    private static final String DEFAULT_KEEP_ALIVE = "30";

    /** Who waits too long is told so within this time. */
    private static final Duration GRACE = Duration.ofSeconds(5);

    private final TextModel model;
    private final String name;
    private final Duration maxWait;
    private final ResponseStream.Silence silence;
    private final String formatter;

    private ServingTranslator(TextModel model, String name) {
        this.model = model;
        this.name = name;
        NAMES.requireSpelling(model.settings().keySet());
        maxWait = seconds(MAX_WAIT, DEFAULT_WAIT);
        silence = silence(maxWait, seconds(KEEP_ALIVE, DEFAULT_KEEP_ALIVE));
        formatter = setting(FORMATTER, "jsonlines");
        if (!List.of("jsonlines", "sse").contains(formatter)) {
            throw new IllegalArgumentException(
                    FORMATTER + " is '" + formatter + "'; allowed: jsonlines, sse.");
        }
        if (Boolean.parseBoolean(setting("tgi_compat", "false"))) {
            throw new IllegalArgumentException(
                    "tgi_compat is not supported; remove it, and set output_formatter=sse for"
                            + " streams of events.");
        }
    }

    static ServingTranslator create(Model model, Map<String, ?> arguments) throws IOException {
        return new ServingTranslator(TextModel.of(model, arguments), model.getName());
    }

    private String setting(String key, String fallback) {
        Object value = model.settings().get(key);
        return value == null ? fallback : value.toString().strip();
    }

    private Duration seconds(String key, String fallback) {
        String text = setting(key, fallback);
        try {
            int seconds = Integer.parseInt(text);
            if (seconds > 0) {
                return Duration.ofSeconds(seconds);
            }
        } catch (NumberFormatException e) {
            // Told below.
        }
        throw new IllegalArgumentException(
                key + " is '" + text + "'; allowed: a whole number of seconds from 1 on.");
    }

    /** Requests may wait for longer than DJL Serving does, but not without a sign of life. */
    private static ResponseStream.Silence silence(Duration maxWait, Duration keepAlive) {
        Duration usual = Duration.ofSeconds(Integer.parseInt(DEFAULT_WAIT));
        Duration before = (maxWait.compareTo(usual) < 0 ? maxWait : usual).plus(GRACE);
        return new ResponseStream.Silence(before, keepAlive);
    }

    /** {@inheritDoc} */
    @Override
    public Batchifier getBatchifier() {
        // One input at a time: the scheduler makes the batches.
        return null;
    }

    /** {@inheritDoc} */
    @Override
    public NDList processInput(TranslatorContext ctx, Input input) {
        ctx.setAttachment(INPUT, input);
        return new NDList();
    }

    /** {@inheritDoc} */
    @Override
    public Output processOutput(TranslatorContext ctx, NDList list) {
        Input input = (Input) ctx.getAttachment(INPUT);
        JsonFields fields = null;
        ServingRequest request;
        try {
            fields = ServingRequest.fields(input);
            request = ServingRequest.read(input, fields);
        } catch (IllegalArgumentException e) {
            ServingError error = ServingError.badRequest(e);
            return ResponseStream.failed(ServingRequest.error(fields, error), error);
        }
        try {
            return submit(input, request);
        } catch (IllegalArgumentException | ChatTemplateException e) {
            return failed(request, ServingError.badRequest(e));
        } catch (RuntimeException e) {
            return failed(request, ServingError.logged(e));
        }
    }

    private static Output failed(ServingRequest request, ServingError error) {
        return ResponseStream.failed(request.error(error), error);
    }

    private Output submit(Input input, ServingRequest request) {
        GenerationConfig config =
                model.config().toBuilder().configure(request.parameters()).build();
        List<int[]> prompts = request.prompts(model);
        ServingRequest.FormatOptions options =
                new ServingRequest.FormatOptions(
                        input.getProperty("requestId", UUID.randomUUID().toString()),
                        name,
                        input.getProperty("Accept", ""),
                        formatter,
                        new TokenTexts(model.tokenizer()));
        ResponseStream stream =
                new ResponseStream(request, request.format(options), prompts.size(), silence);
        model.generator().submit(prompts, config, stream, input::isCancelled, maxWait);
        return stream.output();
    }
}
