/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.Device;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileSystemException;
import java.nio.file.FileSystemLoopException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What can be said without a model: help, wrong usage, errors. */
class KvqTest {

    private record Run(int exitCode, String out, String err) {}

    private static Run run(String... args) {
        StringWriter out = new StringWriter();
        StringWriter err = new StringWriter();
        int exitCode = Kvq.run(args, new PrintWriter(out), new PrintWriter(err));
        return new Run(exitCode, out.toString(), err.toString());
    }

    private static void assertError(int exitCode, String message, Run run) {
        assertEquals(message, run.err().strip());
        assertEquals("", run.out());
        assertEquals(exitCode, run.exitCode());
    }

    @ParameterizedTest
    @ValueSource(
            strings = {"", "generate", "chat", "perplexity", "eval", "calibrate", "bench", "info"})
    void everyCommandHasHelpWithTheSharedOptions(String command) {
        Run run =
                run(Stream.of(command, "--help").filter(a -> !a.isEmpty()).toArray(String[]::new));
        assertEquals(0, run.exitCode());
        for (String option :
                new String[] {
                    "--model", "--kv-cache-dtype", "--device", "--dtype", "--set", "--json"
                }) {
            assertTrue(run.out().contains(option), option);
        }
        assertEquals("", run.err());
    }

    @Test
    void helpNamesTheCachesThatEachCommandTakesByDefault() {
        String help = run("generate", "--help").out().replaceAll("\\s+", " ");
        String defaults =
                "(default: int2 for generate, chat and calibrate; auto and int2 for perplexity; fp16"
                        + " and int2 for bench; all for eval and info); perplexity, eval, bench,"
                        + " calibrate and info take several";
        assertTrue(help.contains(defaults), help);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '"',
            value = {
                "''|kvq: A command is missing. See 'kvq --help'.",
                "generte hi|kvq: There is no command 'generte'; allowed: generate, chat, perplexity,"
                        + " eval, calibrate, bench, info. See 'kvq --help'.",
                "generate --kv-cache-dtyp int2 x|kvq: There is no option '--kv-cache-dtyp'; did you"
                        + " mean --kv-cache-dtype? See 'kvq generate --help'.",
                "generate x y|kvq: Unmatched argument at index 2: 'y'. See 'kvq generate --help'.",
                "generate --set kv_clip x|kvq: Value for option '--set' (kv_x=y) should be in"
                        + " KEY=VALUE format but was kv_clip. See 'kvq generate --help'.",
                "generate|kvq: PROMPT or --file is missing. See 'kvq generate --help'.",
                "generate --raw --system x y|kvq: --system needs the chat template, which --raw turns"
                        + " off. See 'kvq generate --help'.",
                "generate --top-k many x|kvq: Invalid value for option '--top-k': 'many' is not an"
                        + " int. See 'kvq generate --help'.",
                "perplexity|kvq: Missing required option: '--text=FILE'. See 'kvq perplexity"
                        + " --help'.",
                "eval|kvq: --text is missing: perplexity and layers need one (or give --measure needle)."
                        + " See 'kvq eval --help'.",
                "eval --measure speed|kvq: --measure is speed; allowed: perplexity, layers and needle,"
                        + " or none. See 'kvq eval --help'.",
                "eval --measure needle --needle-depth 101|kvq: --needle-depth is outside the prompt;"
                        + " allowed: 0 to 100 percent. See 'kvq eval --help'.",
                "eval --text a --windows 0|kvq: --windows is 0; allowed: 1 or more. See 'kvq eval"
                        + " --help'.",
                "calibrate --text pom.xml --output pom.xml|kvq: --output pom.xml is a file; name a"
                        + " directory. See 'kvq calibrate --help'.",
                "eval --text pom.xml --output pom.xml|kvq: --output pom.xml is a file; name a"
                        + " directory. See 'kvq eval --help'.",
                "bench --batch 0|kvq: --batch is 0; allowed: 1 or more, or max. See 'kvq bench --help'.",
                "bench --depth -1|kvq: --depth is -1; allowed: 0 or more, or max. See 'kvq bench"
                        + " --help'.",
                "bench --depth 1,x|kvq: --depth is x; allowed: 0 or more, or max. See 'kvq bench"
                        + " --help'.",
                "bench --depth max --batch max|kvq: --depth and --batch are both max; allowed: one of"
                        + " them. See 'kvq bench --help'.",
                "bench --fill air|kvq: --fill is air; allowed: prompt, random. See 'kvq bench"
                        + " --help'."
            })
    void wrongUsageIsToldInOneLineAndExits2(String arguments, String message) {
        String[] args = "''".equals(arguments) ? new String[0] : arguments.split(" ");
        assertError(2, message, run(args));
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '"',
            value = {
                "generate x|kvq: --model is missing: only the launcher examples/kvq knows a default.",
                "generate --model /no/such x|kvq: --model /no/such is not a directory; give one that"
                        + " holds config.json, *.safetensors and tokenizer.json.",
                "generate --file /no/such|kvq: There is no file /no/such.",
                "generate --kv-cache-dtype int9 x|kvq: kv_cache_dtype 'int9' is not supported; choose"
                        + " one of auto, fp16, int8, int4, int3, int2, latent4, latent3, latent2,"
                        + " latent1.5, rotatekv4, rotatekv3, rotatekv2, kvquant4, kvquant3, kvquant2,"
                        + " svdq2.25, svdq1.25 or a pair K/V such as rotatekv4/rotatekv2.",
                "generate --kv-cache-dtype fp16 --kv-cache-dtype auto x|kvq: --kv-cache-dtype is given"
                        + " 2 times; only perplexity, eval, bench, calibrate and info take several.",
                "chat --set temperature=1|kvq: --set temperature is not a cache option; allowed:"
                        + " kv_…=value except kv_cache_dtype (use --kv-cache-dtype), and"
                        + " max_batch_size.",
                "info --kv-cache-dtype auto --set kv_group_size=64|kvq: --model is missing: only the"
                        + " launcher examples/kvq knows a default.",
                "bench --kv-cache-dtype auto --set kv_group_size=64|kvq: kv_group_size has an effect"
                        + " only when keys or values are quantized; kv_cache_dtype is auto. Remove it"
                        + " or choose a quantized kv_cache_dtype.",
                "generate --dtype int8 x|kvq: dtype 'int8' is not supported; choose one of auto, fp32,"
                        + " bf16, fp16.",
                "generate --device gpu0 x|kvq: --device 'gpu0' is not known; allowed: auto (a GPU if"
                        + " there is one), cpu, gpu, gpu:N.",
                "bench --model random:llama|kvq: There is no model random:llama; allowed:"
                        + " random:llama-2-7b, random:llama-2-13b, random:llama-3-8b,"
                        + " random:llama-3.2-1b, random:smollm2-135m.",
                "perplexity --text /no/such|kvq: There is no file /no/such.",
                "eval --text /no/such|kvq: There is no file /no/such.",
                "calibrate --text src|kvq: --text src is a directory; name a text file.",
                "perplexity --text src|kvq: --text src is a directory; name a text file.",
                "eval --text src|kvq: --text src is a directory; name a text file.",
                "eval --measure needle --needle-text src|kvq: --needle-text src is a directory; name"
                        + " a text file.",
                "generate --file src|kvq: --file src is a directory; name a text file.",
                "eval --measure none --output /no/such|kvq: --output /no/such holds no results; measure"
                        + " something first.",
                "perplexity --text x --kv-cache-dtype int2:recent=1|kvq: --kv-cache-dtype"
                        + " int2:recent=1: 'recent=1' is not a cache option; write NAME:kv_x=y, for"
                        + " example rotatekv2:kv_recent_tokens=128."
            })
    void errorsAreToldInOneLineAndExit1(String arguments, String message) {
        assertError(1, message, run(arguments.split(" ")));
    }

    @Test
    void sharedOptionsMayStandBeforeTheCommand() {
        assertError(
                1,
                "kvq: --device 'tpu' is not known; allowed: auto (a GPU if there is one), cpu, gpu,"
                        + " gpu:N.",
                run("--device", "tpu", "generate", "x"));
    }

    @Test
    void aDirectoryWithoutAModelIsNamed(@TempDir Path directory) throws Exception {
        Run run = run("generate", "--model", directory.toString(), "x");
        assertEquals(1, run.exitCode());
        assertTrue(run.err().contains("No config.json in " + directory), run.err());
        assertEquals(1, run.err().lines().count());
        Files.writeString(directory.resolve("config.json"), "{");
        run = run("generate", "--model", directory.toString(), "x");
        assertEquals(1, run.exitCode());
        assertEquals(1, run.err().lines().count(), run.err());
    }

    @Test
    void aTextInAnotherEncodingIsNamed(@TempDir Path directory) throws Exception {
        Path text = Files.write(directory.resolve("latin1.txt"), new byte[] {(byte) 0xE9, 'a'});
        String message = " " + text + " is not UTF-8; convert it, for example with iconv.";
        assertError(1, "kvq: --file" + message, run("generate", "--file", text.toString()));
        assertError(1, "kvq: --text" + message, run("eval", "--text", text.toString()));
    }

    @Test
    void anOutputBelowAFileIsRefusedBeforeTheWork(@TempDir Path directory) throws Exception {
        Path file = Files.writeString(directory.resolve("file"), "x");
        Path output = file.resolve("below");
        for (String command : new String[] {"eval", "calibrate"}) {
            assertError(
                    2,
                    "kvq: --output "
                            + output
                            + " can not be made: "
                            + file
                            + " is a file; name another directory. See 'kvq "
                            + command
                            + " --help'.",
                    run(command, "--text", "pom.xml", "--output", output.toString()));
        }
    }

    @Test
    void errorsOfFilesSayWhatIsWrong() {
        assertEquals(
                "f can not be read or written: permission denied; change its permissions or choose"
                        + " another.",
                Errors.describe(new AccessDeniedException("f")));
        assertEquals(
                "f is not a directory; choose another.",
                Errors.describe(new FileAlreadyExistsException("f")));
        assertEquals(
                "f can not be read or written (FileSystemLoopException).",
                Errors.describe(new FileSystemLoopException("f")));
        assertEquals(
                "f: No space left on device",
                Errors.describe(new FileSystemException("f", null, "No space left on device")));
    }

    @Test
    void ourWarningsAreShownAndThoseOfDjlOnRequest() {
        String all = "org.slf4j.simpleLogger.defaultLogLevel";
        String ours = "org.slf4j.simpleLogger.log.ai.djl.kvquant";
        Map<String, String> quiet = Kvq.properties(new String[] {"generate", "x"});
        assertEquals(List.of("error", "warn"), List.of(quiet.get(all), quiet.get(ours)));
        Map<String, String> verbose = Kvq.properties(new String[] {"generate", "--verbose", "x"});
        assertEquals(List.of("info", "info"), List.of(verbose.get(all), verbose.get(ours)));
    }

    @Test
    void devicesAreShownAsTheyAreGiven() {
        assertEquals("cpu", Devices.name(Device.cpu()));
        assertEquals("gpu:1", Devices.name(Device.gpu(1)));
    }

    @Test
    void verboseShowsTheOrigin() {
        Run run = run("generate", "--verbose", "--device", "tpu", "x");
        assertEquals(1, run.exitCode());
        assertTrue(run.err().contains("\tat ai.djl.kvquant.examples.Devices"), run.err());
    }
}
