/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.Spec;
import picocli.CommandLine.UnmatchedArgumentException;

/** The command line of djl-kvquant: options that all commands share, and how errors are told. */
@Command(
        name = "kvq",
        description =
                "Runs LLaMA checkpoints in the JVM, on DJL's PyTorch engine, with a quantized KV"
                        + " cache.",
        mixinStandardHelpOptions = true,
        versionProvider = Versions.class,
        scope = ScopeType.INHERIT,
        usageHelpAutoWidth = true,
        sortOptions = false,
        exitCodeListHeading = "%nExit codes:%n",
        exitCodeList = {"0:success", "1:an error, told in one line", "2:wrong usage"},
        subcommands = {
            GenerateCommand.class,
            ChatCommand.class,
            PerplexityCommand.class,
            EvalCommand.class,
            CalibrateCommand.class,
            BenchCommand.class,
            InfoCommand.class
        })
public final class Kvq implements Runnable {

    @Spec private CommandSpec spec;

    @Option(
            names = "--model",
            paramLabel = "DIR",
            scope = ScopeType.INHERIT,
            description =
                    "HuggingFace directory: config.json, *.safetensors, tokenizer.json (default:"
                            + " SmolLM2-135M-Instruct, fetched on first use); for bench and info also"
                            + " random:llama-2-7b, random:llama-2-13b, random:llama-3-8b,"
                            + " random:llama-3.2-1b and random:smollm2-135m, shapes with random weights")
    String model;

    @Option(
            names = "--kv-cache-dtype",
            paramLabel = "NAME",
            scope = ScopeType.INHERIT,
            description =
                    "how keys and values are stored: auto, fp16, int8, int4, int3, int2, latent4,"
                            + " latent3, latent2, latent1.5, rotatekv4, rotatekv3, rotatekv2,"
                            + " kvquant4, kvquant3, kvquant2, svdq2.25, svdq1.25 or a pair K/V,"
                            + " with own options as NAME:kv_x=y (default: int2 for generate, chat"
                            + " and calibrate; auto and int2 for perplexity; fp16 and int2 for"
                            + " bench; all for eval and info); "
                            + CacheArguments.TAKE_SEVERAL)
    List<String> cacheDtypes = new ArrayList<>();

    @Option(
            names = "--set",
            paramLabel = "kv_x=y",
            scope = ScopeType.INHERIT,
            description = "an expert option of the cache, for example kv_recent_tokens=128")
    Map<String, String> settings = new LinkedHashMap<>();

    @Option(
            names = "--dtype",
            paramLabel = "TYPE",
            defaultValue = "auto",
            scope = ScopeType.INHERIT,
            description = "type of the weights: auto (the checkpoint's), fp32, bf16, fp16")
    String dtype;

    @Option(
            names = "--device",
            paramLabel = "DEVICE",
            defaultValue = "auto",
            scope = ScopeType.INHERIT,
            description = "where to compute: auto (a GPU if there is one), cpu, gpu, gpu:N")
    String device;

    @Option(
            names = "--json",
            scope = ScopeType.INHERIT,
            description = "print one JSON object a line on stdout, and nothing else there")
    boolean json;

    @Option(
            names = "--verbose",
            scope = ScopeType.INHERIT,
            description = "log what is loaded, and errors with their origin")
    boolean verbose;

    /**
     * Runs the command line.
     *
     * @param args the arguments
     */
    public static void main(String[] args) {
        properties(args).forEach(Kvq::setDefault);
        System.exit(run(args, utf8(FileDescriptor.out), utf8(FileDescriptor.err)));
    }

    /**
     * Runs the command line within a program.
     *
     * @param args the arguments
     * @param out where results go
     * @param err where errors and figures go
     * @return the exit code: 0, 1 after an error, 2 after wrong usage
     */
    public static int run(String[] args, PrintWriter out, PrintWriter err) {
        Kvq kvq = new Kvq();
        return new CommandLine(kvq)
                .setOut(out)
                .setErr(err)
                .setParameterExceptionHandler(Kvq::tellUsage)
                .setExecutionExceptionHandler((e, command, parsed) -> kvq.tell(e, command))
                .execute(args);
    }

    /**
     * System properties, set before the first logger and the engine are made: what DJL warns of is
     * for those who ask, what we warn of is for all.
     */
    static Map<String, String> properties(String[] args) {
        boolean verbose = Arrays.asList(args).contains("--verbose");
        return Map.of(
                "org.slf4j.simpleLogger.defaultLogLevel",
                verbose ? "info" : "error",
                "org.slf4j.simpleLogger.log.ai.djl.kvquant",
                verbose ? "info" : "warn",
                "org.slf4j.simpleLogger.showThreadName",
                "false",
                "OPT_OUT_TRACKING",
                "true",
                "ai.djl.pytorch.graph_optimizer",
                "false");
    }

    private static void setDefault(String name, String value) {
        if (System.getProperty(name) == null) {
            System.setProperty(name, value);
        }
    }

    private static PrintWriter utf8(FileDescriptor descriptor) {
        return new PrintWriter(new FileOutputStream(descriptor), true, StandardCharsets.UTF_8);
    }

    private static int tellUsage(ParameterException e, String[] args) {
        CommandLine command = e.getCommandLine();
        String message = message(e);
        String name = command.getCommandSpec().qualifiedName();
        command.getErr()
                .println(
                        "kvq: "
                                + message
                                + (message.matches(".*[.?]") ? "" : ".")
                                + " See '"
                                + name
                                + " --help'.");
        command.getErr().flush();
        return command.getCommandSpec().exitCodeOnInvalidInput();
    }

    private static String message(ParameterException e) {
        if (e instanceof UnmatchedArgumentException unmatched) {
            String first = unmatched.getUnmatched().get(0);
            Map<String, CommandLine> commands = e.getCommandLine().getSubcommands();
            List<String> similar = unmatched.getSuggestions();
            if (unmatched.isUnknownOption() && !similar.isEmpty()) {
                return "There is no option '"
                        + first
                        + "'; did you mean "
                        + String.join(" or ", similar)
                        + "?";
            }
            if (!unmatched.isUnknownOption() && !commands.isEmpty()) {
                return "There is no command '"
                        + first
                        + "'; allowed: "
                        + String.join(", ", commands.keySet());
            }
        }
        // Picocli doubles the word for options of pairs.
        return Errors.oneLine(e.getMessage()).replace("option option", "option");
    }

    private int tell(Exception e, CommandLine command) {
        command.getOut().flush();
        command.getErr().println("kvq: " + Errors.describe(e));
        if (verbose) {
            e.printStackTrace(command.getErr());
        }
        command.getErr().flush();
        return command.getCommandSpec().exitCodeOnExecutionException();
    }

    /** Without a command. */
    @Override
    public void run() {
        throw new ParameterException(spec.commandLine(), "A command is missing.");
    }
}
