/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.engine.EngineException;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.List;
import java.util.function.BiConsumer;
import java.util.function.Function;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** What the operators refuse, and with which words: kernels check nothing. */
class BoundaryErrorTest {

    // Places of the arguments of append.
    private static final int QKV = 0;
    private static final int STARTS = 1;
    private static final int MASSIVE_VALUES = 2;
    private static final int MASSIVE_ROWS = 3;
    private static final int LENGTHS = 4;
    private static final int PAGE_TABLE = 5;
    private static final int EXACT_TABLE = 6;
    private static final int PAGES = 7;
    private static final int EXACT = 8;
    private static final int ROPE = 9;
    private static final int PARAMS = 10;

    // Byte offsets of LayerParams and SideParams.
    private static final int NUM_HEADS = 8;
    private static final int NUM_KV_HEADS = 12;
    static final int HEAD_DIM = 16;
    private static final int WINDOW = 20;
    private static final int SINK_POLICY = 24;
    private static final int MAX_SINKS = 28;
    static final int KEYS = 48;
    static final int VALUES = KEYS + Side.HEADER_BYTES;
    static final int BITS = 4;
    static final int ROTATION_HEADS = 8;
    private static final int GROUP_SIZE = 12;
    static final int ORDER_OFFSET = 24;

    static final int LENGTH = 70;
    static final int WINDOW_TOKENS = 16;
    private static final int POSITIONS = 4160;

    @TestFactory
    Stream<DynamicTest> appendRefuses() {
        return Stream.of(
                tensor("qkv must be FLOAT32, not INT32", QKV, ints(new Shape(1, 960))),
                tensor("qkv must have 2 axes, not 1", QKV, floats(new Shape(960))),
                tensor("qkv has 64 columns but 960 are needed", QKV, floats(new Shape(1, 64))),
                test("qkv must be contiguous", (s, a) -> a[QKV] = transposed(s, 960)),
                tensor("starts must be INT32, not FLOAT32", STARTS, floats(new Shape(2))),
                tensor("starts has 3 entries but 2 are needed", STARTS, ints(new Shape(3))),
                tensor("the first of starts is 1; allowed: 0 to 0", STARTS, values(1, 1)),
                tensor("an entry of starts is 2; allowed: 0 to 1", STARTS, values(0, 2)),
                tensor("starts has 0 rows at its end but 1 are needed", STARTS, values(0, 0)),
                test("massive entries has 19 columns", (s, a) -> massive(s, a, 19, 0f, 0)),
                test(
                        "a massive position is 1; allowed: -1 to 0",
                        (s, a) -> massive(s, a, 20, 0f, 1)),
                test("a massive value is NaN", (s, a) -> massive(s, a, 20, Float.NaN, 0)),
                tensor("lengths must be INT32, not FLOAT32", LENGTHS, floats(new Shape(1, 2))),
                tensor("lengths has 1 columns but 2 are needed", LENGTHS, ints(new Shape(1, 1))),
                test(
                        "a sequence's length is -1; allowed: 0 to 4160",
                        (s, a) -> a[LENGTHS] = length(s, -1)),
                test(
                        "a sequence's length is 4161; allowed: 0 to 4160",
                        (s, a) -> a[LENGTHS] = length(s, POSITIONS)),
                test(
                        "a page table's tokens is 145; allowed: 0 to 128",
                        (s, a) -> a[LENGTHS] = length(s, 160)),
                tensor("page_table must be INT32", PAGE_TABLE, floats(new Shape(1, 2))),
                tensor("page_table has 2 rows but 1 are needed", PAGE_TABLE, ints(new Shape(2, 2))),
                test(
                        "a page id is 4; allowed: 0 to 3",
                        (s, a) -> a[PAGE_TABLE] = s.create(new int[][] {{4, 0}})),
                test(
                        "a page id is -1; allowed: 0 to 3",
                        (s, a) -> a[PAGE_TABLE] = s.create(new int[][] {{-1, 0}})),
                tensor(
                        "exact_table's columns is 2; allowed: 4 to",
                        EXACT_TABLE,
                        ints(new Shape(1, 2))),
                test(
                        "an exact page id is 9; allowed: 0 to 5",
                        (s, a) -> a[EXACT_TABLE] = s.create(new int[][] {{0, 1, 2, 9}})),
                tensor("pages must be UINT8, not INT32", PAGES, ints(new Shape(4, 64))),
                test(
                        "pages has 64 bytes a page but",
                        (s, a) -> a[PAGES] = s.zeros(new Shape(4, 64), DataType.UINT8)),
                test(
                        "exact has 64 bytes a page but",
                        (s, a) -> a[EXACT] = s.zeros(new Shape(6, 64), DataType.UINT8)),
                tensor("rope must have 3 axes, not 2", ROPE, floats(new Shape(65, 64))),
                tensor("rope has 3 parts but 2 are needed", ROPE, floats(new Shape(65, 3, 32))),
                tensor(
                        "rope has 16 pairs of channels but 32 are needed",
                        ROPE,
                        floats(new Shape(65, 2, 16))),
                tensor("rope's rows is 64; allowed: 65 to", ROPE, floats(new Shape(64, 2, 32))));
    }

    @TestFactory
    Stream<DynamicTest> paramsAreChecked() {
        return Stream.of(
                params("params are not packed layer parameters", 0, 0),
                params("params are not packed layer parameters", 4, Layer.BYTES - 1),
                params("num_kv_heads is 0; allowed: 1 to 65536", NUM_KV_HEADS, 0),
                params("num_heads is 0; allowed: 1 to", NUM_HEADS, 0),
                params("10 heads are not a multiple of 3 kv heads", NUM_HEADS, 10),
                params("head_dim is 512; allowed: 2 to 256", HEAD_DIM, 512),
                params("head_dim is 63, which RoPE can not halve", HEAD_DIM, 63),
                params("window is -1; allowed: 0 to 1048576", WINDOW, -1),
                params("sink_policy is 3; allowed: 0 to 2", SINK_POLICY, 3),
                params("max_sinks is 20, but the sink policy is none", SINK_POLICY, 0),
                params("massive sinks need 20 slots, not 19", MAX_SINKS, 19),
                params("max_sinks is -1; allowed: 0 to 65536", MAX_SINKS, -1),
                params("keys have format 6 with 4 bits", KEYS, 6),
                params("values have format 0 with 4 bits", VALUES, 0),
                params("keys have 5 bits; allowed: 2, 3, 4, 8", KEYS + BITS, 5),
                params(
                        "keys have groups of 8 channels; allowed: multiples of 16",
                        KEYS + GROUP_SIZE,
                        8),
                params("values have groups of 80 channels", VALUES + GROUP_SIZE, 80),
                params(
                        "keys are rotated over 2 heads; allowed: 0 to 4, a divisor of 3",
                        KEYS + ROTATION_HEADS,
                        2),
                params("keys are rotated over -1 heads", KEYS + ROTATION_HEADS, -1),
                params("values can only be rotated head by head", VALUES + ROTATION_HEADS, 3),
                params(
                        ordered(layer(), 2),
                        "values can only be rotated head by head",
                        VALUES + ORDER_OFFSET,
                        Layer.BYTES),
                params(
                        "the channel order lies outside the packed parameters",
                        KEYS + ORDER_OFFSET,
                        100),
                params(
                        "the channel order lies outside the packed parameters",
                        KEYS + ORDER_OFFSET,
                        Layer.BYTES),
                params(
                        "the channel order lies outside the packed parameters",
                        KEYS + ORDER_OFFSET,
                        Integer.MAX_VALUE),
                order("a channel of the order is 192; allowed: 0 to 191", 192),
                order("a channel of the order is -1; allowed: 0 to 191", -1),
                order("channel 1 stands twice in the order", 1));
    }

    @TestFactory
    Stream<DynamicTest> readersRefuse() {
        return Stream.of(
                call(
                        "attend",
                        "qkv has 2 rows but 1 are needed",
                        List.of(floats(new Shape(2, 960)))),
                call(
                        "attend",
                        "qkv has 64 columns but 960 are needed",
                        List.of(floats(new Shape(1, 64)))),
                call(
                        "dequantize",
                        "sequence is 1; allowed: 0 to 0",
                        List.of(s -> 1L, s -> 0L, s -> 1L)),
                call(
                        "dequantize",
                        "end is 71; allowed: 0 to 70",
                        List.of(s -> 0L, s -> 0L, s -> 71L)),
                call(
                        "dequantize",
                        "begin is 3; allowed: 0 to 2",
                        List.of(s -> 0L, s -> 3L, s -> 2L)),
                call(
                        "dequantize",
                        "begin is -1; allowed: 0 to 2",
                        List.of(s -> 0L, s -> -1L, s -> 2L)),
                call(
                        "rope_heads",
                        "qkv has 64 columns but 960 are needed",
                        List.of(floats(new Shape(1, 64)), s -> s.create(new int[] {0, 1}))),
                call(
                        "rope_heads",
                        "starts has 1 entries but 2 are needed",
                        List.of(floats(new Shape(1, 960)), s -> s.create(new int[] {0}))));
    }

    /** Changes the arguments of a call of append that would succeed. */
    private static DynamicTest test(String message, BiConsumer<NDManager, Object[]> change) {
        return DynamicTest.dynamicTest(
                message,
                () -> {
                    try (CacheState state = state(layer());
                            NDManager scope = Kernels.MANAGER.newSubManager()) {
                        Object[] arguments = append(state, scope);
                        change.accept(scope, arguments);
                        refused("append", message, arguments, scope);
                    }
                });
    }

    private static DynamicTest tensor(
            String message, int place, Function<NDManager, Object> argument) {
        return test(message, (scope, arguments) -> arguments[place] = argument.apply(scope));
    }

    /** Changes one INT32 of the packed parameters. */
    private static DynamicTest params(String message, int offset, int value) {
        return params(layer(), message, offset, value);
    }

    /** Changes one INT32 of the packed parameters of a layer. */
    static DynamicTest params(Layer layer, String message, int offset, int value) {
        ByteBuffer packed = layer.pack().order(ByteOrder.LITTLE_ENDIAN);
        return packed(message, packed.putInt(offset, value));
    }

    /** Puts other packed parameters in place of those of a call of append that would succeed. */
    static DynamicTest packed(String message, ByteBuffer packed) {
        return test(message, (scope, arguments) -> arguments[PARAMS] = params(scope, packed));
    }

    /** Puts a channel at the third place of the natural order. */
    private static DynamicTest order(String message, int channel) {
        return packed(message, ordered(layer(), channel).pack());
    }

    /** The layer with keys in natural order but for the channel at the third place. */
    private static Layer ordered(Layer layer, int channel) {
        int[] order = IntStream.range(0, layer.channels()).toArray();
        order[2] = channel;
        return layer.withKeys(layer.keys().withOrder(order));
    }

    private static DynamicTest call(
            String operator, String message, List<Function<NDManager, Object>> first) {
        return DynamicTest.dynamicTest(
                operator + ": " + message,
                () -> {
                    try (CacheState state = state(layer());
                            NDManager scope = Kernels.MANAGER.newSubManager()) {
                        Object[] own = first.stream().map(f -> f.apply(scope)).toArray();
                        refused(operator, message, state.arguments(scope, own), scope);
                    }
                });
    }

    private static void refused(
            String operator, String message, Object[] arguments, NDManager scope) {
        EngineException e =
                assertThrows(EngineException.class, () -> Kernels.run(scope, operator, arguments));
        String expected = "kvquant::" + operator + ": " + message;
        assertTrue(
                e.getMessage().contains(expected), () -> expected + " is not in " + e.getMessage());
    }

    private static Layer layer() {
        return Case.sample(Method.ROTATEKV4, LENGTH, Case.SinkPlace.SCATTERED, WINDOW_TOKENS)
                .layer();
    }

    private static CacheState state(Layer layer) {
        byte poison = CacheState.POISONS[0];
        CacheState state =
                new CacheState(
                        layer, Scenario.rope(64, 0), new int[] {LENGTH + 1}, 0, poison, null);
        state.lengths[0] = LENGTH;
        return state;
    }

    private static Object[] append(CacheState state, NDManager scope) {
        NDArray[] none = Massive.tensors(scope, null, 1);
        NDArray qkv = scope.zeros(new Shape(1, state.layer.columns()));
        return state.arguments(scope, qkv, scope.create(new int[] {0, 1}), none[0], none[1]);
    }

    private static void massive(
            NDManager scope, Object[] arguments, int columns, float value, int row) {
        arguments[MASSIVE_VALUES] = scope.full(new Shape(1, columns), value, DataType.FLOAT32);
        arguments[MASSIVE_ROWS] = scope.full(new Shape(1, columns), row, DataType.INT32);
    }

    private static NDArray length(NDManager scope, int length) {
        return scope.create(new int[][] {{length, 0}});
    }

    private static NDArray params(NDManager scope, ByteBuffer packed) {
        return scope.create(packed, new Shape(packed.remaining()), DataType.UINT8);
    }

    private static NDArray transposed(NDManager scope, int columns) {
        return Kernels.run(scope, "transpose", scope.zeros(new Shape(columns, 2))).get(0);
    }

    private static Function<NDManager, Object> ints(Shape shape) {
        return scope -> scope.zeros(shape, DataType.INT32);
    }

    private static Function<NDManager, Object> floats(Shape shape) {
        return scope -> scope.zeros(shape, DataType.FLOAT32);
    }

    private static Function<NDManager, Object> values(int... values) {
        return scope -> scope.create(values);
    }
}
