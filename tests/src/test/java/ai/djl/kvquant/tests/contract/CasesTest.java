/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.Collectors;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** The contract matrix itself: every method meets every value of every axis that it has. */
class CasesTest {

    private static final Map<Function<Case, Object>, Integer> AXES =
            Map.of(
                    Case::length, Case.LENGTHS.length,
                    Case::batch, 3,
                    Case::perHead, 4,
                    Case::kvHeads, 4,
                    Case::headDim, 3,
                    Case::sinks, Case.SinkPlace.values().length,
                    Case::window, 3,
                    Case::pages, Case.Pages.values().length,
                    Case::kind, Inputs.Kind.values().length);

    private static final Map<Function<Case, Object>, Integer> AFFINE =
            Map.of(Case::group, 3, Case::order, 2, Case::floatZero, 2);

    private static final Map<Function<Case, Object>, Integer> STATIC =
            Map.of(Case::order, 2, Case::widths, StaticCodes.WIDTHS.length, Case::waves, 3);

    private static final Map<Function<Case, Object>, Integer> CODEBOOK =
            Map.of(Case::widths, StaticCodes.WIDTHS.length);

    @ParameterizedTest
    @EnumSource(Method.class)
    void methodsMeetAllValues(Method method) {
        List<Case> cases = Cases.pairs(method).collect(Collectors.toList());
        check(cases, AXES);
        switch (method.family()) {
            case AFFINE -> check(cases, AFFINE);
            case STATIC -> check(cases, STATIC);
            case CODEBOOK -> check(cases, CODEBOOK);
            default -> {}
        }
    }

    private static void check(List<Case> cases, Map<Function<Case, Object>, Integer> axes) {
        axes.forEach(
                (axis, size) ->
                        assertEquals((long) size, cases.stream().map(axis).distinct().count()));
    }
}
