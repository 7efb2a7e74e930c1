/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
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
        2,
        StaticCodes.WIDTHS.length,
        3
    };

    // Axes that mean something for some methods only.
    private static final int GROUP = 9;
    private static final int ORDER = 10;
    private static final int FLOAT_ZERO = 11;
    private static final int WIDTHS = 12;
    private static final int WAVES = 13;

    /** More channels are multiplied by a basis of a layer for few tokens only. */
    private static final int LARGE_BASIS = 512;

    private static final int LARGE_BASIS_TOKENS = 129;

    /** Axes before this one are the ones whose product is taken. */
    private static final int MAIN_AXES = 7;

    private static final int LARGE_HEAD_DIMS = 2;

    private static final Map<Method.Family, List<int[]>> ROWS = new ConcurrentHashMap<>();

    private Cases() {}

    static boolean full() {
        return "full".equals(System.getProperty("contract"));
    }

    static Stream<Case> of(Method method) {
        return full() ? product(method) : pairs(method);
    }

    /** Pairs over methods and axes, as far as an axis means something for a family of methods. */
    static Stream<Case> pairs(Method method) {
        List<Method> methods =
                Arrays.stream(Method.values())
                        .filter(m -> m.family() == method.family())
                        .collect(Collectors.toList());
        List<int[]> rows = ROWS.computeIfAbsent(method.family(), f -> rows(f, methods.size()));
        return IntStream.range(0, rows.size())
                .filter(i -> rows.get(i)[SIZES.length] == methods.indexOf(method))
                .mapToObj(i -> create(method, rows.get(i), i));
    }

    private static List<int[]> rows(Method.Family family, int methods) {
        int[] sizes = Arrays.copyOf(SIZES, SIZES.length + 1);
        for (int axis : unused(family)) {
            sizes[axis] = 1;
        }
        sizes[SIZES.length] = methods;
        return CoveringArray.of(sizes);
    }

    private static int[] unused(Method.Family family) {
        return switch (family) {
            case PLAIN -> new int[] {GROUP, ORDER, FLOAT_ZERO, WIDTHS, WAVES};
            case AFFINE -> new int[] {WIDTHS, WAVES};
            case STATIC -> new int[] {GROUP, FLOAT_ZERO};
            case CODEBOOK -> new int[] {GROUP, ORDER, FLOAT_ZERO, WAVES};
        };
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
                            return create(method, row, i);
                        });
    }

    private static Case create(Method method, int[] row, int seed) {
        int length = Case.LENGTHS[row[0]];
        int kvHeads = KV_HEADS[row[3]];
        if (method.hasLayerBasis() && kvHeads * HEAD_DIMS[row[4]] > LARGE_BASIS) {
            kvHeads = length > LARGE_BASIS_TOKENS ? 2 : kvHeads;
        }
        return new Case(
                method,
                length,
                BATCHES[row[1]],
                PER_HEAD[row[2]],
                kvHeads,
                HEAD_DIMS[row[4]],
                Case.SinkPlace.values()[row[5]],
                WINDOWS[row[6]],
                Case.Pages.values()[row[7]],
                Inputs.Kind.values()[row[8]],
                row[GROUP],
                row[ORDER] == 1,
                row[FLOAT_ZERO] == 1,
                row[WIDTHS],
                row[WAVES],
                seed);
    }
}
