/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.generate.Cancellation;
import ai.djl.kvquant.generate.FinishReason;
import ai.djl.kvquant.generate.GeneratedToken;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.GenerationListener;
import ai.djl.kvquant.generate.GenerationResult;
import ai.djl.kvquant.generate.Generator;
import java.io.PrintWriter;
import java.util.List;

/**
 * Generates for a reader: the text as it comes on stdout and one line of figures on stderr, or
 * JSON.
 */
final class Console {

    private final PrintWriter out;
    private final PrintWriter err;
    private final boolean json;

    Console(PrintWriter out, PrintWriter err, boolean json) {
        this.out = out;
        this.err = err;
        this.json = json;
    }

    GenerationResult generate(Generator generator, int[] prompt, GenerationConfig config) {
        GenerationListener listener = json ? token -> true : new Printer(out);
        GenerationResult result =
                generator.generate(List.of(prompt), config, listener, new Cancellation()).get(0);
        if (json) {
            out.println(Json.line(GenerationReport.json(result)));
        } else {
            out.println();
        }
        out.flush();
        if (result.finishReason() == FinishReason.CACHE_FULL) {
            err.println(result.message());
        }
        if (!json) {
            err.println(GenerationReport.line(result, config));
        }
        err.flush();
        return result;
    }

    private record Printer(PrintWriter out) implements GenerationListener {

        @Override
        public boolean onToken(GeneratedToken token) {
            out.print(token.text());
            out.flush();
            return !out.checkError();
        }

        @Override
        public void onFinish(int sequence, String remainder, GenerationResult result) {
            out.print(remainder);
        }
    }
}
