/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import ai.djl.kvquant.torch.Operators.Variant;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * The kernels of a GPU, run on the CPU by native-ops/emulator: what they store is what the portable
 * operators store, to the byte, and attention follows the definition as closely as halves allow.
 */
class CudaContractTest {

    /** Long prompts take the emulator long. */
    private static final int MOST_TOKENS = 129;

    /** What the others have no kernel for. */
    private static final List<Integer> HEAD_DIMS = List.of(64, 128);

    /** Operands of products are halves: so much coarser than what Tolerance allows fp32. */
    private static final double HALVES = 300;

    /** Relative error of dequantized sides, which are halves or computed with them. */
    private static final double ROUNDED = 1e-3;

    @BeforeEach
    void useThePortableOperators() {
        assumeTrue(
                Kernels.canEmulateCuda(),
                "libkvquant_emulated.so was not built: it needs nvcc and g++ on Linux x86-64");
        Kernels.OPERATORS.useVariant(Variant.PORTABLE);
    }

    @AfterEach
    void restoreVariant() {
        Kernels.emulateCuda(false);
        Kernels.OPERATORS.useVariant(Kernels.OPERATORS.bestVariant());
    }

    @ParameterizedTest
    @EnumSource(Method.class)
    void kernelsFollowTheDefinition(Method method) {
        List<Case> cases =
                Stream.concat(usualLayers(method), pairs(method)).collect(Collectors.toList());
        double worst = 0;
        for (Case point : cases) {
            Kernels.emulateCuda(false);
            try (Scenario portable = new Scenario(point)) {
                Kernels.emulateCuda(true);
                try (Scenario cuda = new Scenario(point)) {
                    assertEquals(-1, portable.state.pages.mismatch(cuda.state.pages), what(point));
                    assertEquals(-1, portable.state.exact.mismatch(cuda.state.exact), what(point));
                    // Queries of these are beyond halves, values below.
                    if (point.kind() != Inputs.Kind.TINY) {
                        worst = Math.max(worst, checkReaders(portable, cuda));
                    }
                }
            }
        }
        System.out.printf(
                "%s: %d cases, errors of halves %.2f of the tolerance%n",
                method, cases.size(), worst / HALVES);
    }

    private static Stream<Case> pairs(Method method) {
        return Cases.pairs(method)
                .filter(point -> point.length() <= MOST_TOKENS)
                .filter(point -> HEAD_DIMS.contains(point.headDim()));
    }

    /** What most kernels are made for: kv heads in groups of four. */
    private static Stream<Case> usualLayers(Method method) {
        return Stream.of(
                        Case.sample(method, 300, Case.SinkPlace.START, 128).withHeads(4, 4, 128),
                        Case.sample(method, 150, Case.SinkPlace.NONE, 0).withHeads(1, 8, 128),
                        Case.sample(method, 150, Case.SinkPlace.START, 17).withHeads(3, 4, 64))
                .map(point -> point.with(2, Case.Pages.SHUFFLED));
    }

    private static String what(Case point) {
        return "in the emulator: " + point;
    }

    private static double checkReaders(Scenario portable, Scenario cuda) {
        double error = cuda.error(new Oracle(portable.state));
        assertTrue(error <= HALVES, () -> what(cuda.point) + ": attention is off by " + error);
        int length = cuda.point.length();
        float[][] actual = cuda.state.dequantize(0, length / 3, length);
        Kernels.emulateCuda(false);
        float[][] expected = portable.state.dequantize(0, length / 3, length);
        for (int side = 0; side < 2; ++side) {
            int n = expected[side].length;
            assertEquals(n, actual[side].length);
            double off = Tolerance.relativeError(widened(expected[side]), actual[side], 0, 0, n);
            assertTrue(off <= ROUNDED, () -> what(cuda.point) + ": dequantized by " + off);
        }
        return error;
    }

    private static double[] widened(float[] x) {
        return IntStream.range(0, x.length).mapToDouble(i -> x[i]).toArray();
    }
}
