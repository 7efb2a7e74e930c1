/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/** A point of the contract matrix. */
record Case(
        Method method,
        int length,
        int batch,
        int perHead,
        int kvHeads,
        int headDim,
        SinkPlace sinks,
        int window,
        Pages pages,
        Inputs.Kind kind,
        int group,
        boolean order,
        boolean floatZero,
        int widths,
        int waves,
        int seed) {

    static final int[] LENGTHS = {0, 1, 15, 16, 17, 63, 64, 65, 129, 1000, 4097};
    private static final int SHORT_LENGTHS = 9;

    /** Which tokens are sinks. */
    enum SinkPlace {
        NONE,
        START,
        SCATTERED
    }

    /** How the sequences' pages lie in the pool. */
    enum Pages {
        ASCENDING,
        SHUFFLED,
        SHARED
    }

    /** A case of one sequence with everything else in the middle. */
    static Case sample(Method method, int length, SinkPlace sinks, int window) {
        return new Case(
                method,
                length,
                1,
                3,
                3,
                64,
                sinks,
                window,
                Pages.SHUFFLED,
                Inputs.Kind.NORMAL,
                0,
                method.keysAreStatic(),
                false,
                0,
                2,
                2);
    }

    Case with(int newBatch, Pages newPages) {
        return new Case(
                method, length, newBatch, perHead, kvHeads, headDim, sinks, window, newPages, kind,
                group, order, floatZero, widths, waves, seed);
    }

    /** With other static codes. */
    Case withCodes(int newWidths, int newWaves) {
        return new Case(
                method, length, batch, perHead, kvHeads, headDim, sinks, window, pages, kind, group,
                order, floatZero, newWidths, newWaves, seed);
    }

    Case withKind(Inputs.Kind newKind) {
        return new Case(
                method, length, batch, perHead, kvHeads, headDim, sinks, window, pages, newKind,
                group, order, floatZero, widths, waves, seed);
    }

    Case withHeads(int newPerHead, int newKvHeads, int newHeadDim) {
        return new Case(
                method,
                length,
                batch,
                newPerHead,
                newKvHeads,
                newHeadDim,
                sinks,
                window,
                pages,
                kind,
                group,
                order,
                floatZero,
                widths,
                waves,
                seed);
    }

    Layer layer() {
        int size = groupSize();
        Side keys = method.keys(this, size);
        Side values = method.values(this, size);
        if (order && keys.isAffine()) {
            keys = keys.withOrder(permutation(kvHeads * headDim, new Random(seed)));
        }
        if (floatZero) {
            keys = keys.isAffine() ? keys.withFloatZero() : keys;
            values = values.isAffine() ? values.withFloatZero() : values;
        }
        Layer.Sinks policy = Layer.Sinks.values()[sinks.ordinal()];
        float scale = (float) (1 / Math.sqrt(headDim));
        return new Layer(
                kvHeads,
                perHead,
                headDim,
                window,
                policy,
                maxSinks(),
                method.preRope(),
                scale,
                keys,
                values);
    }

    private int maxSinks() {
        int start = seed % 2 == 0 ? 4 : 20;
        return switch (sinks) {
            case NONE -> 0;
            case START -> start;
            case SCATTERED -> Massive.ENTRIES;
        };
    }

    /** A table for none, some or many of the waves; null: none. */
    float[] waveTable() {
        double[] frequencies = Scenario.rope(headDim, 0).inverseFrequencies;
        return waves == 0 ? null : Waves.table(frequencies, 8 * waves);
    }

    /** One group a head, 16 channels, or groups that do not end where heads do. */
    private int groupSize() {
        return switch (group) {
            case 0 -> headDim;
            case 1 -> 16;
            default -> kvHeads == 1 ? headDim / 2 : kvHeads == 3 ? 3 * headDim / 2 : 2 * headDim;
        };
    }

    /** An order that leaves channels in their heads. */
    int[] headOrder() {
        int[] all = new int[kvHeads * headDim];
        Random random = new Random(seed);
        for (int first = 0; first < all.length; first += headDim) {
            int[] head = permutation(headDim, random);
            for (int i = 0; i < headDim; ++i) {
                all[first + i] = first + head[i];
            }
        }
        return all;
    }

    private static int[] permutation(int n, Random random) {
        int[] order = new int[n];
        for (int i = 0; i < n; ++i) {
            int j = random.nextInt(i + 1);
            order[i] = order[j];
            order[j] = i;
        }
        return order;
    }

    /**
     * Tokens of each sequence before the decoded one: the case's length, then shorter and longer
     * ones.
     */
    int[] lengths() {
        int[] lengths = new int[batch];
        lengths[0] = length;
        for (int b = 1; b < batch; ++b) {
            lengths[b] = LENGTHS[(seed + 4 * b) % SHORT_LENGTHS];
        }
        return lengths;
    }

    /**
     * The largest entries of the prompts' tokens [begin, end), as one call of append takes them.
     */
    Massive massive(int begin, int end) {
        if (sinks != SinkPlace.SCATTERED) {
            return null;
        }
        List<List<Massive.Entry>> rows = new ArrayList<>();
        for (int b = 0; b < batch; ++b) {
            List<Massive.Entry> row = new ArrayList<>();
            for (Massive.Entry entry : entries(b)) {
                if (entry.token() >= begin && entry.token() < end) {
                    row.add(new Massive.Entry(entry.value(), entry.token() - begin));
                }
            }
            rows.add(Massive.largest(row));
        }
        return new Massive(rows);
    }

    /**
     * Entries of a prompt in such places as borders of pages and the last position; more than
     * decide.
     */
    List<Massive.Entry> entries(int b) {
        int n = lengths()[b];
        Random random = new Random(seed + b);
        TreeSet<Integer> tokens = new TreeSet<>(List.of(0, 15, 16, 63, 64, 127, 128, 4096));
        tokens.add(n - 1);
        while (tokens.size() < 14) {
            tokens.add(random.nextInt(Math.max(20, n)));
        }
        List<Massive.Entry> entries = new ArrayList<>();
        for (int i = 0; i < 3; ++i) {
            for (int token : tokens) {
                if (token >= 0 && token < n) {
                    entries.add(new Massive.Entry(random.nextInt(50) * 10f + i, token));
                }
            }
        }
        return entries;
    }

    /** The tokens of a prompt that are to be kept exactly. */
    Set<Integer> expectedSinks(int b, int length) {
        if (sinks == SinkPlace.SCATTERED) {
            return Massive.owners(Massive.largest(entries(b)));
        }
        return IntStream.range(0, Math.min(length, maxSinks()))
                .boxed()
                .collect(Collectors.toCollection(TreeSet::new));
    }

    /** Tokens that row b has in common with row 0, in whole pages. */
    int shared(int b) {
        return pages == Pages.SHARED && b > 0 ? Math.min(lengths()[0], lengths()[b]) / 64 * 64 : 0;
    }
}
