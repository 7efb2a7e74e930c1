/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.Generator;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.kvquant.translate.ChatMessage;
import ai.djl.kvquant.translate.ChatTemplate;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParentCommand;
import picocli.CommandLine.Spec;

/**
 * A conversation. Each turn renders the whole of it; the KV cache of what it has in common with the
 * turn before is taken over, so that only the new message is computed.
 */
@Command(
        name = "chat",
        description = {
            "Talks with the model; the KV cache of earlier turns is kept.",
            "A line is a message; /reset starts anew, /exit or the end of input ends."
        })
final class ChatCommand implements Callable<Integer> {

    @ParentCommand private Kvq kvq;
    @Spec private CommandSpec spec;
    @Mixin private SamplingOptions sampling;

    @Option(names = "--system", paramLabel = "TEXT", description = "the system prompt")
    private String system;

    private final List<ChatMessage> messages = new ArrayList<>();

    @Override
    public Integer call() throws Exception {
        CacheOptions options = new CacheArguments(kvq, "int2").single();
        try (Session session = Session.open(kvq);
                LlamaLanguageModel model = session.model().withCache(session.complete(options))) {
            GenerationConfig config = sampling.config(session.directory());
            ChatTemplate template = ChatTemplate.fromModelDirectory(session.directory());
            talk(new Generator(model, session.tokenizer()), template, config);
        }
        return 0;
    }

    private void talk(Generator generator, ChatTemplate template, GenerationConfig config)
            throws IOException {
        PrintWriter err = spec.commandLine().getErr();
        Console console = new Console(spec.commandLine().getOut(), err, kvq.json);
        BufferedReader in =
                new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        reset();
        for (String line = ask(in); line != null && !"/exit".equals(line); line = ask(in)) {
            if ("/reset".equals(line)) {
                reset();
            } else if (!line.isEmpty()) {
                answer(line, generator, template, config, console);
            }
        }
    }

    /**
     * A message that can not be answered, for example for want of room, leaves the conversation as
     * it was.
     */
    private void answer(
            String message,
            Generator generator,
            ChatTemplate template,
            GenerationConfig config,
            Console console) {
        messages.add(new ChatMessage("user", message));
        try {
            int[] prompt = generator.encode(template.render(messages, true), false);
            GenerationResult result = console.generate(generator, prompt, config);
            messages.add(new ChatMessage("assistant", result.text()));
        } catch (RuntimeException e) {
            messages.remove(messages.size() - 1);
            PrintWriter err = spec.commandLine().getErr();
            err.println("kvq: " + Errors.describe(e) + " (/reset starts anew)");
            err.flush();
        }
    }

    private void reset() {
        messages.clear();
        if (system != null) {
            messages.add(new ChatMessage("system", system));
        }
    }

    private String ask(BufferedReader in) throws IOException {
        if (Progress.isTerminal()) {
            PrintWriter err = spec.commandLine().getErr();
            err.print("> ");
            err.flush();
        }
        String line = in.readLine();
        return line == null ? null : line.strip();
    }
}
