/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.Device;
import ai.djl.kvquant.cache.CacheFullException;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.ModelClosedException;
import ai.djl.modality.nlp.generate.CausalLMOutput;
import ai.djl.modality.nlp.generate.ContrastiveSeqBatchScheduler;
import ai.djl.modality.nlp.generate.TextGenerator;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.training.ParameterStore;
import ai.djl.translate.TranslateException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** What stands for keys and values: how long sequences live, what may be done with them. */
class SequenceHandlesTest {

    /** Arrays that greedy search of DJL keeps of every step: ids, output and attention mask. */
    private static final int KEPT_BY_DJL = 3;

    @TempDir Path directory;
    private SmallModel small;

    @BeforeEach
    void copyModel() throws Exception {
        small = SmallModel.in(directory).tokenizer();
    }

    private Searches load(String... options) throws Exception {
        Map<String, String> map = new HashMap<>(Map.of("kv_cache_dtype", "auto"));
        for (int i = 0; i < options.length; i += 2) {
            map.put(options[i], options[i + 1]);
        }
        return Searches.load(directory, map);
    }

    /** One call of the translator's contract. */
    private static CausalLMOutput call(
            Searches searches, NDManager manager, long[][] ids, long[][] mask, NDList past)
            throws TranslateException {
        long[][] positions = new long[ids.length][ids[0].length];
        for (int row = 0; row < ids.length; ++row) {
            int hidden = mask[row].length - ids[row].length;
            int next = (int) Arrays.stream(mask[row], 0, hidden).sum();
            for (int i = 0; i < ids[row].length; ++i) {
                positions[row][i] = next;
                next += (int) mask[row][hidden + i];
            }
        }
        NDList inputs =
                new NDList(manager.create(ids), manager.create(positions), manager.create(mask));
        inputs.addAll(past);
        return searches.predictor().predict(inputs);
    }

    private static CausalLMOutput prompt(Searches searches, NDManager manager, long... ids)
            throws TranslateException {
        long[][] mask = {new long[ids.length]};
        Arrays.fill(mask[0], 1);
        return call(searches, manager, new long[][] {ids}, mask, new NDList());
    }

    private static CausalLMOutput next(
            Searches searches, NDManager manager, CausalLMOutput before, long... ids)
            throws TranslateException {
        NDList past = before.getPastKeyValuesList();
        long[][] mask = {new long[Math.toIntExact(past.get(0).getShape().get(2)) + ids.length]};
        Arrays.fill(mask[0], 1);
        return call(searches, manager, new long[][] {ids}, mask, past);
    }

    /** The logits of the last position of the first row. */
    private static float[] last(CausalLMOutput output) {
        return output.getLogits().get("0, -1").toFloatArray();
    }

    @Test
    void greedyKeepsNothingButTheCache() throws Exception {
        try (Searches searches = load("kv_cache_dtype", "rotatekv2", "kv_recent_tokens", "16");
                NDManager manager = searches.newManager()) {
            int[] arrays = new int[2];
            long[] bytes = new long[2];
            int[] lengths = {128, 512};
            for (int i = 0; i < 2; ++i) {
                try (NDManager ofSearch = manager.newSubManager()) {
                    NDArray ids =
                            Searches.padded(
                                    ofSearch,
                                    List.of(SmallModel.prompt(9, 1), SmallModel.prompt(9, 2)));
                    new TextGenerator(searches.predictor(), "greedy", Searches.config(lengths[i]))
                            .generate(ids);
                    arrays[i] = ofSearch.getManagedArrays().size();
                    bytes[i] = searches.block().heldUsage().bytes();
                    assertEquals(2, searches.block().heldSequences());
                }
                assertEquals(0, searches.block().heldSequences());
                assertEquals(0, searches.block().heldUsage().bytes());
            }
            assertEquals(KEPT_BY_DJL * (512 - 128), arrays[1] - arrays[0]);
            assertTrue(bytes[1] < 4.5 * bytes[0], bytes[0] + " bytes, then " + bytes[1]);
        }
    }

    /** Sequences that are forked and freed on the way do not run out of pages. */
    @ParameterizedTest
    @ValueSource(strings = {"beam", "contrastive"})
    void searchesFreeWhatTheyDrop(String search) throws Exception {
        List<int[]> prompts = List.of(SmallModel.prompt(9, 1), SmallModel.prompt(9, 2));
        // 6 or 8 rows of 200 tokens and a page each on top; not what 190 steps dropped.
        try (Searches searches =
                load("kv_cache_tokens", "3000", "kv_cache_dtype", "int8", "max_batch_size", "8")) {
            searches.run(search, prompts, 190);
            assertEquals(0, searches.block().heldSequences());
        }
    }

    /** A fork of shared pages reads the same as a sequence that grew by itself. */
    @ParameterizedTest
    @ValueSource(strings = {"auto", "fp16", "int2", "rotatekv2", "rotatekv4/int4"})
    void forksEqualTheirOrigin(String dtype) throws Exception {
        List<int[]> prompts = List.of(SmallModel.prompt(150, 3), SmallModel.prompt(120, 4));
        List<List<List<Integer>>> outputs = new ArrayList<>();
        for (String keep : List.of("false", "true")) {
            // Of sequences that are kept, every step takes pages of its own.
            try (Searches searches =
                    load(
                            "kv_cache_dtype",
                            dtype,
                            "keep_handles",
                            keep,
                            "kv_cache_tokens",
                            "40000",
                            "max_batch_size",
                            "80")) {
                for (String search : List.of("greedy", "beam", "contrastive")) {
                    outputs.add(searches.run(search, prompts, 30));
                }
                assertEquals(0, searches.block().heldSequences());
            }
        }
        assertEquals(outputs.subList(0, 3), outputs.subList(3, 6));
    }

    @Test
    void scheduler() throws Exception {
        List<SearchGolden> goldens = SearchGolden.of("f32");
        int length = 30;
        try (Searches searches = load();
                NDManager manager = searches.newManager()) {
            ContrastiveSeqBatchScheduler scheduler =
                    new ContrastiveSeqBatchScheduler(searches.predictor(), Searches.config(length));
            // A longer prompt joins shorter ones and the other way round; some end before others.
            int[] order = {1, 0, 1, 0, 1};
            for (int uid = 0; uid < order.length; ++uid) {
                NDArray ids = Searches.padded(manager, List.of(goldens.get(order[uid]).prompt()));
                scheduler.addRequest(ids, manager.create(new long[][] {{uid}}));
                scheduler.incrementForward(uid + 2);
            }
            while (!scheduler.incrementForward(1)) {
                assertTrue(searches.block().heldSequences() <= 4 * order.length);
            }
            Map<Long, NDArray> results = scheduler.collectResults();
            assertEquals(order.length, results.size());
            for (int uid = 0; uid < order.length; ++uid) {
                SearchGolden golden = goldens.get(order[uid]);
                long[] expected = Arrays.copyOf(longs(golden.prompt()), length);
                int prompt = golden.prompt().length;
                System.arraycopy(longs(golden.contrastive()), 0, expected, prompt, length - prompt);
                assertArrayEquals(expected, results.get((long) uid).toLongArray());
            }
        }
    }

    private static long[] longs(int[] values) {
        return Arrays.stream(values).asLongStream().toArray();
    }

    /** Several tokens at once behind a cache, as speculative decoding asks for. */
    @Test
    void logitsOfEveryToken() throws Exception {
        try (Searches searches = load("prompt_logits", "all");
                NDManager manager = searches.newManager()) {
            CausalLMOutput whole = prompt(searches, manager, 5, 6, 7, 8, 9);
            assertEquals(new Shape(1, 5, 256), whole.getLogits().getShape());
            assertEquals(new Shape(1, 5, 64), whole.getHiddenState().getShape());
            CausalLMOutput first = prompt(searches, manager, 5, 6);
            CausalLMOutput rest = next(searches, manager, first, 7, 8, 9);
            assertEquals(new Shape(1, 1, 5, 1), rest.getPastKeyValuesList().get(0).getShape());
            for (int i = 0; i < 3; ++i) {
                assertArrayEquals(
                        whole.getLogits().get(0, 2 + i).toFloatArray(),
                        rest.getLogits().get(0, i).toFloatArray(),
                        1e-4f);
            }
            try (DecodingBatch batch =
                    searches.block().languageModel().prefill(List.of(new int[] {5, 6, 7}))) {
                assertArrayEquals(
                        batch.logits().toFloatArray(),
                        rest.getLogits().get(0, 0).toFloatArray(),
                        1e-4f);
            }
            // Longer than what is computed at once; the second row is padded.
            long[][] ids = {longs(SmallModel.prompt(380, 1)), longs(SmallModel.prompt(380, 2))};
            long[][] mask = new long[2][380];
            Arrays.fill(mask[0], 1);
            Arrays.fill(mask[1], 300, 380, 1);
            CausalLMOutput two = call(searches, manager, ids, mask, new NDList());
            assertEquals(new Shape(2, 380, 256), two.getLogits().getShape());
            assertEquals(0f, two.getLogits().get("1, :300").abs().sum().getFloat());
            for (int row = 0; row < 2; ++row) {
                long[] alone = row == 0 ? ids[0] : Arrays.copyOfRange(ids[1], 300, 380);
                CausalLMOutput one = prompt(searches, manager, alone);
                String columns = row == 0 ? "0" : "1, 300:";
                assertArrayEquals(
                        one.getLogits().get(0).toFloatArray(),
                        two.getLogits().get(columns).toFloatArray(),
                        1e-3f);
                assertArrayEquals(
                        one.getHiddenState().get(0).toFloatArray(),
                        two.getHiddenState().get(columns).toFloatArray(),
                        1e-3f);
            }
            try (Searches usual = load();
                    NDManager its = usual.newManager()) {
                CausalLMOutput output = call(usual, its, ids, mask, new NDList());
                assertEquals(new Shape(2, 1, 256), output.getLogits().getShape());
                assertEquals(new Shape(2, 380, 64), output.getHiddenState().getShape());
                for (int row = 0; row < 2; ++row) {
                    assertArrayEquals(
                            two.getLogits().get(row, 379).toFloatArray(),
                            output.getLogits().get(row, 0).toFloatArray(),
                            1e-3f);
                }
            }
        }
    }

    /** DJL pads on the right as well; then it reads the last column. */
    @Test
    void paddingOnTheRight() throws Exception {
        try (Searches searches = load();
                NDManager manager = searches.newManager()) {
            CausalLMOutput plain = prompt(searches, manager, 5, 6, 7);
            long[][] ids = {{5, 6, 7, 0, 0}, {9, 8, 7, 6, 5}};
            long[][] mask = {{1, 1, 1, 0, 0}, {1, 1, 1, 1, 1}};
            CausalLMOutput padded = call(searches, manager, ids, mask, new NDList());
            assertArrayEquals(last(plain), last(padded), 1e-4f);
            long[][] more = {{1, 1, 1, 0, 0, 1}, {1, 1, 1, 1, 1, 1}};
            CausalLMOutput step =
                    call(
                            searches,
                            manager,
                            new long[][] {{4}, {4}},
                            more,
                            padded.getPastKeyValuesList());
            assertArrayEquals(last(next(searches, manager, plain, 4)), last(step), 1e-4f);
        }
    }

    @Test
    void goingBackNeedsAnOption() throws Exception {
        try (Searches searches = load();
                NDManager manager = searches.newManager()) {
            CausalLMOutput start = prompt(searches, manager, 5, 6, 7);
            next(searches, manager, start, 8);
            String message = message(() -> next(searches, manager, start, 9));
            assertTrue(message.contains("keep_handles=true"), message);
        }
        try (Searches searches = load("keep_handles", "true");
                NDManager manager = searches.newManager()) {
            CausalLMOutput start = prompt(searches, manager, 5, 6, 7);
            float[] first = last(next(searches, manager, start, 8));
            next(searches, manager, start, 9);
            assertArrayEquals(first, last(next(searches, manager, start, 8)));
            assertEquals(4, searches.block().heldSequences());
        }
        IllegalArgumentException error =
                assertThrows(IllegalArgumentException.class, () -> load("keep_handles", "yes"));
        assertEquals("keep_handles is 'yes'; allowed: false or true.", error.getMessage());
    }

    /** What fails leaves the sequences as they were. */
    @Test
    void failuresChangeNothing() throws Exception {
        try (Searches searches = load();
                NDManager manager = searches.newManager()) {
            CausalLMOutput start = prompt(searches, manager, 5, 6, 7);
            NDList past = start.getPastKeyValuesList();
            assertFails("Token id 256 is outside", () -> next(searches, manager, start, 256));
            assertFails(
                    "shows 2 past tokens, but the sequence has 3",
                    () ->
                            call(
                                    searches,
                                    manager,
                                    new long[][] {{8}},
                                    new long[][] {{0, 1, 1, 1}},
                                    past));
            assertFails(
                    "Row 0 has no tokens",
                    () ->
                            call(
                                    searches,
                                    manager,
                                    new long[][] {{8}},
                                    new long[][] {{1, 1, 1, 0}},
                                    past));
            NDList positions =
                    new NDList(
                            manager.create(new long[][] {{8}}),
                            manager.create(new long[][] {{5}}),
                            manager.create(new long[][] {{1, 1, 1, 1}}));
            positions.addAll(past);
            assertFails(
                    "Position id 5 of row 0 is that of no next token: 3 tokens come before",
                    () -> searches.predictor().predict(positions));
            NDList half = new NDList();
            past.forEach(array -> half.add(array.toType(DataType.FLOAT16, false)));
            assertFails(
                    "Past keys and values must be as the engine KvQuant returned them",
                    () ->
                            call(
                                    searches,
                                    manager,
                                    new long[][] {{8}},
                                    new long[][] {{1, 1, 1, 1}},
                                    half));
            assertEquals(1, searches.block().heldSequences());
            float[] expected = last(prompt(searches, manager, 5, 6, 7, 8));
            assertArrayEquals(expected, last(next(searches, manager, start, 8)), 1e-4f);
        }
    }

    @Test
    void fullCaches() throws Exception {
        try (Searches searches = load("kv_cache_tokens", "100");
                NDManager manager = searches.newManager()) {
            CausalLMOutput first = prompt(searches, manager, longs(SmallModel.prompt(90, 1)));
            Throwable error =
                    assertThrows(
                                    TranslateException.class,
                                    () ->
                                            prompt(
                                                    searches,
                                                    manager,
                                                    longs(SmallModel.prompt(400, 2))))
                            .getCause();
            assertInstanceOf(CacheFullException.class, error);
            assertTrue(error.getMessage().contains("input ids are closed: 1."));
            assertEquals(1, searches.block().heldSequences());
            next(searches, manager, first, 8);
        }
    }

    /**
     * A part of many tokens has no room: nothing of the parts before it, which would have pushed
     * recent tokens out of the exact window, is to be seen.
     */
    @Test
    void manyTokensThatDoNotFit() throws Exception {
        float[][] logits = new float[2][];
        for (int i = 0; i < 2; ++i) {
            try (Searches searches =
                            load(
                                    "kv_cache_dtype",
                                    "rotatekv2",
                                    "kv_recent_tokens",
                                    "64",
                                    "kv_cache_tokens",
                                    "512",
                                    "max_batch_size",
                                    "2");
                    NDManager manager = searches.newManager()) {
                CausalLMOutput start =
                        call(searches, manager, prompts(100), ones(100), new NDList());
                NDList past = start.getPastKeyValuesList();
                if (i == 1) {
                    Throwable error =
                            assertThrows(
                                            TranslateException.class,
                                            () ->
                                                    call(
                                                            searches,
                                                            manager,
                                                            prompts(300),
                                                            ones(400),
                                                            past))
                                    .getCause();
                    assertInstanceOf(CacheFullException.class, error);
                }
                CausalLMOutput next =
                        call(searches, manager, new long[][] {{8}, {9}}, ones(101), past);
                logits[i] = next.getLogits().toFloatArray();
            }
        }
        assertArrayEquals(logits[0], logits[1]);
    }

    private static long[][] prompts(int length) {
        return new long[][] {
            longs(SmallModel.prompt(length, 1)), longs(SmallModel.prompt(length, 2))
        };
    }

    private static long[][] ones(int columns) {
        long[][] mask = new long[2][columns];
        for (long[] row : mask) {
            Arrays.fill(row, 1);
        }
        return mask;
    }

    /** A manager of the caller's own may outlive the model. */
    @Test
    void modelsThatAreClosedFirst() throws Exception {
        Searches searches = load("kv_cache_dtype", "svdq2.25", "kv_basis", "prompt");
        try (NDManager manager = NDManager.newBaseManager(Device.cpu(), "PyTorch")) {
            prompt(searches, manager, longs(SmallModel.prompt(300, 1)));
            searches.close();
            assertEquals(1, searches.block().heldSequences());
        }
        assertEquals(0, searches.block().heldSequences());
    }

    /** Whoever closes a model waits for the calls that run in it, and later ones are refused. */
    @Test
    void modelsThatAreClosedUnderCalls() throws Exception {
        Searches searches = load();
        CountDownLatch began = new CountDownLatch(1);
        CompletableFuture<Void> calls =
                CompletableFuture.runAsync(
                        () -> {
                            while (true) {
                                forward(searches, longs(SmallModel.prompt(100, 1)));
                                began.countDown();
                            }
                        });
        assertTrue(began.await(1, TimeUnit.MINUTES));
        searches.close();
        ExecutionException error =
                assertThrows(ExecutionException.class, () -> calls.get(1, TimeUnit.MINUTES));
        assertInstanceOf(ModelClosedException.class, error.getCause());
    }

    private static void forward(Searches searches, long... ids) {
        try (NDManager manager = NDManager.newBaseManager(Device.cpu(), "PyTorch")) {
            NDList inputs = new NDList(manager.create(new long[][] {ids}));
            searches.block().forward(new ParameterStore(manager, false), inputs, false);
        }
    }

    private interface Attempt {
        void run() throws TranslateException;
    }

    private static void assertFails(String message, Attempt attempt) {
        String actual = message(attempt);
        assertTrue(actual.contains(message), actual);
    }

    private static String message(Attempt attempt) {
        TranslateException error = assertThrows(TranslateException.class, attempt::run);
        return error.getCause().getMessage();
    }
}
