/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.io.IOException;
import java.util.Collection;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.function.Function;

/** A chapter of the report: what one part of an evaluation says. */
interface AccuracySection {

    /** The cache without quantization, which others are compared with. */
    String AUTO = "auto";

    /** The chapter in Markdown, which names the plots. */
    String markdown();

    /** Draws the plots that the chapter names. */
    void plot(AccuracyPlots plots) throws IOException;

    /** The chapter in short. */
    Table summary();

    /** A label as code, its options behind it. */
    static String cache(String label) {
        String[] parts = label.split(":", 2);
        String name = "`" + parts[0] + "`";
        return parts.length == 1 ? name : name + " " + parts[1].replace(':', ' ');
    }

    static String image(String title, String file) {
        return "\n![" + title + "](" + file + ")\n";
    }

    /** The caches of some rows: first those that are in order, then others. */
    static <R> List<String> ordered(
            List<String> order, Collection<R> rows, Function<R, String> cache) {
        Set<String> measured = new LinkedHashSet<>();
        rows.forEach(row -> measured.add(cache.apply(row)));
        Set<String> all = new LinkedHashSet<>(order);
        all.retainAll(measured);
        all.addAll(measured);
        return List.copyOf(all);
    }
}
