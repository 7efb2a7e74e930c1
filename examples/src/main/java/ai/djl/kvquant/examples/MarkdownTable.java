/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.util.Arrays;
import java.util.Collections;
import java.util.stream.Collectors;

/** A table in Markdown: the first column left-aligned, the others right-aligned. */
final class MarkdownTable {

    private final StringBuilder text = new StringBuilder();

    MarkdownTable(String... header) {
        row((Object[]) header);
        String rest = String.join(" | ", Collections.nCopies(header.length - 1, "---:"));
        text.append("| --- | ").append(rest).append(" |\n");
    }

    void row(Object... cells) {
        text.append(
                Arrays.stream(cells)
                        .map(cell -> String.valueOf(cell).replace("|", "\\|"))
                        .collect(Collectors.joining(" | ", "| ", " |\n")));
    }

    @Override
    public String toString() {
        return text.toString();
    }
}
