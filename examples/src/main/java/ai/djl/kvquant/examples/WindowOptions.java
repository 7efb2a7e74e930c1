/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import picocli.CommandLine.Option;

/** Which windows of a text are evaluated. */
final class WindowOptions {

    private static final int DEFAULT_WINDOWS = 10;

    @Option(
            names = "--context",
            paramLabel = "N",
            defaultValue = "2048",
            description = "tokens of a window (default: ${DEFAULT-VALUE})")
    private int context;

    @Option(
            names = "--windows",
            paramLabel = "N",
            description =
                    "windows of each text, spread evenly over it (default: "
                            + DEFAULT_WINDOWS
                            + ", or all if there are fewer)")
    private Integer windows;

    int context() {
        return context;
    }

    /** Windows that are asked for, or fewer if a text is short. */
    int most() {
        return windows == null ? DEFAULT_WINDOWS : windows;
    }

    /** Windows of a text of so many tokens: what was asked for is not reduced. */
    int of(int tokens) {
        return windows == null
                ? Math.min(most(), Math.max(1, tokens / Math.max(1, context)))
                : windows;
    }
}
