/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import me.tongfei.progressbar.ConsoleProgressBarConsumer;
import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;

/** A progress bar on stderr if that is a terminal; otherwise nothing. */
final class Progress implements AutoCloseable {

    /** Tells that stderr is a terminal, which Java can not find out; set by the launcher. */
    private static final String TERMINAL = "kvq.terminal";

    private static final int WIDTH = 79;

    private final ProgressBar bar;

    private Progress(String task, long max) {
        bar =
                !isTerminal()
                        ? null
                        : new ProgressBarBuilder()
                                .setTaskName(task)
                                .setInitialMax(max)
                                .setStyle(ProgressBarStyle.ASCII)
                                .setConsumer(new ConsoleProgressBarConsumer(System.err, WIDTH))
                                .clearDisplayOnFinish()
                                .build();
    }

    static boolean isTerminal() {
        return Boolean.getBoolean(TERMINAL);
    }

    static Progress of(String task, long max) {
        return new Progress(task, max);
    }

    /** For work whose amount is not known. */
    static Progress unbounded(String task) {
        return new Progress(task, -1);
    }

    void step() {
        stepBy(1);
    }

    void stepBy(long count) {
        if (bar != null) {
            bar.stepBy(count);
        }
    }

    @Override
    public void close() {
        if (bar != null) {
            bar.close();
        }
    }
}
