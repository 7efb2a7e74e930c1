/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import java.io.UncheckedIOException;
import java.util.stream.Stream;

/** Models that can not generate text from text: tokenizers, chat templates, generation settings. */
final class BadTextModels {

    private static final String TEMPLATE = "{\"chat_template\": %s}";

    private BadTextModels() {}

    /** Loads a text model, with a good tokenizer, after something was done to its files. */
    private static BadInput<SmallModel> files(
            String name, BadInput.Action<SmallModel> damage, String... fragments) {
        return BadInput.of(
                name,
                UncheckedIOException.class,
                model -> {
                    damage.run(model.tokenizer());
                    model.criteria(String.class).build().loadModel().close();
                },
                fragments);
    }

    private static BadInput<SmallModel> template(String json, String... fragments) {
        return files(
                "chat_template " + json,
                m -> m.write("tokenizer_config.json", TEMPLATE.formatted(json)),
                fragments);
    }

    private static BadInput<SmallModel> option(String name, String value, String... fragments) {
        return BadInput.of(
                name + "=" + value + " as an option",
                IllegalArgumentException.class,
                m ->
                        m.tokenizer()
                                .criteria(String.class)
                                .optOption(name, value)
                                .build()
                                .loadModel(),
                fragments);
    }

    private static BadInput<SmallModel> argument(String name, Object value, String... fragments) {
        return BadInput.of(
                name + "=" + value + " as an argument",
                IllegalArgumentException.class,
                m ->
                        m.tokenizer()
                                .criteria(String.class)
                                .optArgument(name, value)
                                .build()
                                .loadModel(),
                fragments);
    }

    static Stream<BadInput<SmallModel>> table() {
        return Stream.concat(directories(), settings());
    }

    private static Stream<BadInput<SmallModel>> directories() {
        String refused = "The chat template refuses the messages: Only for cats";
        String unreadable = "The chat template cannot be rendered (line 1)";
        String mend = "Mend the template, or set apply_chat_template=false";
        return Stream.of(
                files(
                        "no tokenizer.json",
                        m -> m.delete("tokenizer.json"),
                        "has no tokenizer.json",
                        "Save one with transformers"),
                files(
                        "tokenizer.json is not JSON",
                        m -> m.write("tokenizer.json", "{\"version\":"),
                        "tokenizer.json is not a tokenizer (",
                        "download it again"),
                files(
                        "tokenizer.json is something else",
                        m -> m.write("tokenizer.json", "{}"),
                        "tokenizer.json is not a tokenizer (",
                        "download it again"),
                files(
                        "tokenizer_config.json is not JSON",
                        m -> m.write("tokenizer_config.json", "chat"),
                        "tokenizer_config.json is not a JSON object",
                        "download it again"),
                files(
                        "generation_config.json is not JSON",
                        m -> m.write("generation_config.json", "[]"),
                        "generation_config.json is not a JSON object",
                        "download it again"),
                template("5", "tokenizer_config.json: chat_template must be a string", "or set"),
                template("[{\"name\": \"default\"}]", "or a list of objects with", "or set"),
                template("\"{% for m in messages %}\"", unreadable, mend),
                template("\"{{ messages[0].content | shout }}\"", unreadable, mend),
                template("\"{{ raise_exception('Only for cats') }}\"", refused, mend));
    }

    private static Stream<BadInput<SmallModel>> settings() {
        String temperature = "it must be at least 0";
        return Stream.of(
                option("temperature", "-1", "temperature -1.0 is not valid", temperature),
                argument("temperature", -0.5, "temperature -0.5 is not valid", temperature),
                argument("temperature", "NaN", "temperature NaN is not valid", temperature),
                argument("temperature", "warm", "temperature 'warm' is not valid", "a number"),
                option("top_p", "0", "top_p 0.0 is not valid", "above 0 and at most 1"),
                option("top_k", "1.5", "top_k '1.5' is not valid", "a whole number"),
                argument("min_p", 2, "min_p 2.0 is not valid", "from 0 to 1"),
                argument("repetition_penalty", "0", "repetition_penalty 0.0", "above 0"),
                argument("max_new_tokens", 0, "max_new_tokens 0 is not valid", "at least 1"),
                option("do_sample", "perhaps", "do_sample 'perhaps'", "true or false"),
                argument("stop", "", "A stop string is empty", "leave it out"),
                option(
                        "apply_chat_template",
                        "maybe",
                        "apply_chat_template is 'maybe'; allowed: true, false, auto"),
                BadInput.of(
                        "apply_chat_template=true without a template",
                        UncheckedIOException.class,
                        m ->
                                m.tokenizer()
                                        .criteria(String.class)
                                        .optOption("apply_chat_template", "true")
                                        .build()
                                        .loadModel(),
                        "has no chat template",
                        "use an instruct model"),
                BadInput.of(
                        "generation_config.json with an impossible value",
                        IllegalArgumentException.class,
                        m -> {
                            m.tokenizer().write("generation_config.json", "{\"top_p\": 3}");
                            m.criteria(String.class).build().loadModel();
                        },
                        "generation_config.json: top_p 3.0 is not valid",
                        "above 0 and at most 1"));
    }
}
