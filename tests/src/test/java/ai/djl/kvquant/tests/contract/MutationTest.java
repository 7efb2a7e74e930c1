/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;

/** An oracle with one step left out must disagree with the operators: the tolerances can fail. */
class MutationTest {

    private static final int LENGTH = 129;

    private static final Map<String, Function<CacheState, Oracle>> MUTANTS =
            Map.of(
                    "a sign of the Hadamard matrix", WrongSign::new,
                    "the zero-point", NoZeroPoint::new,
                    "a sink", NoSink::new,
                    "the right position", WrongPosition::new);

    @TestFactory
    Stream<DynamicTest> mutantsFail() {
        return MUTANTS.entrySet().stream()
                .map(
                        mutant ->
                                DynamicTest.dynamicTest(
                                        "without " + mutant.getKey(),
                                        () -> assertTrue(error(mutant.getValue()) > 50)));
    }

    @Test
    void theOracleItselfPasses() {
        assertTrue(error(Oracle::new) < 1);
    }

    /** The largest relative error of a head as a multiple of the tolerance. */
    private static double error(Function<CacheState, Oracle> oracle) {
        // 8 bits: the smallest effect of a mistake among the quantized methods.
        Case point = Case.sample(Method.EIGHT_BITS, LENGTH, Case.SinkPlace.SCATTERED, 0);
        try (Scenario scenario = new Scenario(point)) {
            Layer layer = scenario.layer;
            Oracle.Attention expected =
                    oracle.apply(scenario.state).attend(0, LENGTH + 1, scenario.decoded, 0);
            float[] actual = scenario.state.attend(scenario.decoded);
            double largest = 0;
            for (int h = 0; h < layer.heads(); ++h) {
                int offset = h * layer.headDim();
                double error =
                        Tolerance.relativeError(
                                expected.output(), actual, offset, offset, layer.headDim());
                largest = Math.max(largest, error);
            }
            return largest / Tolerance.of(expected);
        }
    }

    private static final class WrongSign extends Oracle {
        WrongSign(CacheState state) {
            super(state);
        }

        @Override
        Rotation rotation(Side side) {
            return super.rotation(side).withWrongSign();
        }
    }

    private static final class NoZeroPoint extends Oracle {
        NoZeroPoint(CacheState state) {
            super(state);
        }

        @Override
        double[] stored(PageFormat format, ByteBuffer page, int slot) {
            double[] x = super.stored(format, page, slot);
            int group = format.side.groups(x.length)[0];
            x[0] +=
                    Half.read(page, format.scaleOffset(slot, group))
                            * Half.read(page, format.zeroOffset(slot, group));
            return x;
        }
    }

    private static final class NoSink extends Oracle {
        NoSink(CacheState state) {
            super(state);
        }

        @Override
        Map<Integer, Integer> sinks(int b, int length) {
            Map<Integer, Integer> sinks = super.sinks(b, length);
            sinks.remove(LENGTH - 1);
            return sinks;
        }
    }

    /** Keys of one page at their neighbours' positions. */
    private static final class WrongPosition extends Oracle {
        WrongPosition(CacheState state) {
            super(state);
        }

        @Override
        int position(int token) {
            return token / 64 == 1 ? token + 1 : token;
        }
    }
}
