/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/**
 * The cases of the contract matrix: a covering array of pairs, or with -Dcontract=full the product
 * of the main axes.
 */
final class Cases {

    private static final int[] BATCHES = {1, 3, 7};
    private static final int[] PER_HEAD = {1, 3, 4, 8};
    private static final int[] KV_HEADS = {1, 2, 3, 8};

    /** 32 has no vectorized version: the portable one runs. */
    private static final int[] HEAD_DIMS = {64, 128, 32};

    private static final int[] WINDOWS = {0, 1, 128};
    private static final int[] SIZES = {
        Case.LENGTHS.length,
        BATCHES.length,
        PER_HEAD.length,
        KV_HEADS.length,
        HEAD_DIMS.length,
        Case.SinkPlace.values().length,
        WINDOWS.length,
        Case.Pages.values().length,
        Inputs.Kind.values().length,
        3,
        2,
        2
    };

    /** Axes before this one are the ones whose product is taken. */
    private static final int MAIN_AXES = 7;

    private static final int LARGE_HEAD_DIMS = 2;

    private Cases() {}

    static boolean full() {
        return "full".equals(System.getProperty("contract"));
    }

    static Stream<Case> of(Method method) {
        return full() ? product(method) : pairs(method);
    }

    /**
     * Pairs over methods and axes; groups, orders and zeros vary only where they mean something.
     */
    static Stream<Case> pairs(Method method) {
        List<Method> methods =
                Arrays.stream(Method.values())
                        .filter(m -> m.isAffine() == method.isAffine())
                        .collect(Collectors.toList());
        int axes = method.isAffine() ? SIZES.length : SIZES.length - 3;
        int[] sizes = new int[axes + 1];
        System.arraycopy(SIZES, 0, sizes, 0, axes);
        sizes[axes] = methods.size();
        List<int[]> rows = CoveringArray.of(sizes);
        return IntStream.range(0, rows.size())
                .filter(i -> rows.get(i)[axes] == methods.indexOf(method))
                .mapToObj(i -> create(method, Arrays.copyOf(rows.get(i), SIZES.length), axes, i));
    }

    /** All combinations of the main axes; the others take turns. */
    private static Stream<Case> product(Method method) {
        int[] sizes = Arrays.copyOf(SIZES, MAIN_AXES);
        sizes[4] = LARGE_HEAD_DIMS;
        int count = Arrays.stream(sizes).reduce(1, (a, b) -> a * b);
        return IntStream.range(0, count)
                .mapToObj(
                        i -> {
                            int[] row = new int[SIZES.length];
                            int rest = i;
                            for (int a = 0; a < MAIN_AXES; ++a) {
                                row[a] = rest % sizes[a];
                                rest /= sizes[a];
                            }
                            // A multiplicative hash: turns that no main axis has.
                            int turn =
                                    (int) ((i * 2654435761L + method.ordinal() * 97) >> 8 & 0xffff);
                            for (int a = MAIN_AXES; a < SIZES.length; ++a) {
                                row[a] = turn % SIZES[a];
                                turn /= SIZES[a];
                            }
                            return create(method, row, SIZES.length, i);
                        });
    }

    private static Case create(Method method, int[] row, int axes, int seed) {
        boolean affine = axes == SIZES.length && method.isAffine();
        return new Case(
                method,
                Case.LENGTHS[row[0]],
                BATCHES[row[1]],
                PER_HEAD[row[2]],
                KV_HEADS[row[3]],
                HEAD_DIMS[row[4]],
                Case.SinkPlace.values()[row[5]],
                WINDOWS[row[6]],
                Case.Pages.values()[row[7]],
                Inputs.Kind.values()[row[8]],
                affine ? row[9] : 0,
                affine && row[10] == 1,
                affine && row[11] == 1,
                seed);
    }
}
