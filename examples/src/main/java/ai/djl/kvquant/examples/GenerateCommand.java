/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.translate.ChatMessage;
import ai.djl.kvquant.translate.ChatTemplate;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.ParentCommand;
import picocli.CommandLine.Spec;

/** Answers one prompt. */
@Command(name = "generate", description = "Answers a prompt, token by token.")
final class GenerateCommand implements Callable<Integer> {

    @ParentCommand private Kvq kvq;
    @Spec private CommandSpec spec;
    @Mixin private SamplingOptions sampling;

    @Parameters(arity = "0..1", paramLabel = "PROMPT", description = "the prompt")
    private String prompt;

    @Option(
            names = "--file",
            paramLabel = "FILE",
            description =
                    "read a long prompt from a file, - for stdin; PROMPT, if given, follows it")
    private String file;

    @Option(names = "--system", paramLabel = "TEXT", description = "the system prompt")
    private String system;

    @Option(names = "--raw", description = "continue the prompt as it is: no chat template")
    private boolean raw;

    @Override
    public Integer call() throws Exception {
        if (prompt == null && file == null) {
            throw new ParameterException(spec.commandLine(), "PROMPT or --file is missing.");
        }
        if (raw && system != null) {
            throw new ParameterException(
                    spec.commandLine(), "--system needs the chat template, which --raw turns off.");
        }
        String text = text();
        CacheOptions options = new CacheArguments(kvq, "int2").single();
        Console console =
                new Console(spec.commandLine().getOut(), spec.commandLine().getErr(), kvq.json);
        try (Session session = Session.open(kvq);
                LlamaLanguageModel model = session.model().withCache(session.complete(options))) {
            GenerationConfig config = sampling.config(session.directory());
            Generator generator = new Generator(model, session.tokenizer());
            int[] tokens =
                    raw
                            ? generator.encode(text, true)
                            : generator.encode(render(session.directory(), text), false);
            console.generate(generator, tokens, config);
        }
        return 0;
    }

    private String render(Path model, String text) throws IOException {
        List<ChatMessage> messages = new ArrayList<>();
        if (system != null) {
            messages.add(new ChatMessage("system", system));
        }
        messages.add(new ChatMessage("user", text));
        return ChatTemplate.fromModelDirectory(model).render(messages, true);
    }

    private String text() throws IOException {
        if (file == null) {
            return prompt;
        }
        String text =
                "-".equals(file)
                        ? new String(System.in.readAllBytes(), StandardCharsets.UTF_8)
                        : Texts.read(Path.of(file), "--file");
        return prompt == null ? text : text + "\n\n" + prompt;
    }
}
