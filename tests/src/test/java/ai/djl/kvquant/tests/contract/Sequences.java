/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import ai.djl.kvquant.cache.CacheBatch;
import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;

/**
 * A model of one layer without weights on a real cache: a token's projections depend on its id and
 * its position only.
 */
final class Sequences implements AutoCloseable {

    /**
     * Prompts' massive entries lie before this position, so that truncations after it lose none.
     */
    static final int MASSIVE_POSITIONS = 60;

    private static final int HEADS = 6;
    private static final int KV_HEADS = 3;
    static final int HEAD_DIM = 64;
    private static final int MAX_TOKENS = 2048;

    final KvCache cache;
    private final Layer layer;
    private final Inputs inputs;

    Sequences(Map<String, String> options) {
        double scale = 1 / Math.sqrt(HEAD_DIM);
        Rope rope = Scenario.rope(HEAD_DIM, 0);
        CacheGeometry geometry =
                new CacheGeometry(
                        1, HEADS, KV_HEADS, HEAD_DIM, scale, rope.inverseFrequencies, MAX_TOKENS);
        cache = new KvCache(Kernels.MANAGER, Kernels.OPERATORS, geometry, configured(options));
        Side any = Side.plain(16);
        layer =
                new Layer(
                        KV_HEADS,
                        HEADS / KV_HEADS,
                        HEAD_DIM,
                        0,
                        Layer.Sinks.NONE,
                        0,
                        false,
                        (float) scale,
                        staticKeys(options) == null ? any : staticKeys(options),
                        any);
        inputs = new Inputs(layer, Inputs.Kind.NORMAL, 5);
    }

    /** The static codes that options stand for in the only layer; null if there are none. */
    static Side staticKeys(Map<String, String> options) {
        String dtype = options.get("kv_cache_dtype");
        boolean svdq = dtype.startsWith("svdq");
        boolean latent = svdq || dtype.startsWith("latent");
        if (!latent && !dtype.startsWith("int")) {
            return null;
        }
        boolean wide = svdq || "layer".equals(options.get("kv_basis"));
        Basis basis = latent ? Basis.of(KV_HEADS, HEAD_DIM, wide) : null;
        Case point = Case.sample(Method.INT_NORM2, 0, Case.SinkPlace.NONE, 0);
        StaticCodes codes =
                StaticCodes.random(
                        KV_HEADS * HEAD_DIM, HEAD_DIM, StaticCodes.WIDTHS[1], basis, null, 7);
        return Side.statics(codes, latent ? null : point.headOrder());
    }

    private static CacheOptions configured(Map<String, String> options) {
        CacheOptions configured = new CacheOptions(options);
        Side keys = staticKeys(options);
        if (options.get("kv_cache_dtype").contains("kvquant")) {
            return configured.withCalibration(codebooks());
        }
        if (keys == null) {
            return configured;
        }
        StaticCodes codes = keys.codes();
        Calibration.Builder builder = new Calibration.Builder(Map.of());
        builder.put(0, "keys.mean", codes.mean()).put(0, "keys.steps", codes.steps());
        builder.put(0, "keys.widths", floats(codes.widths()));
        if (codes.basis() == null) {
            builder.put(0, "keys.order", floats(keys.order()));
        } else {
            builder.put(0, "keys.basis", codes.basis().forward());
            builder.put(0, "keys.inverse", codes.basis().inverse());
        }
        if (codes.noise() != null) {
            builder.put(0, "keys.noise", codes.noise());
        }
        return configured.withCalibration(builder.build());
    }

    /** Codebooks of 2 bits for keys and values. */
    static Calibration codebooks() {
        Case point = Case.sample(Method.KVQUANT2, 0, Case.SinkPlace.NONE, 0);
        Codebook keys = Codebook.keys(2, point);
        Codebook values = Codebook.values(2, point);
        return new Calibration.Builder(Map.of())
                .put(0, "keys.steps", keys.steps())
                .put(0, "keys.levels", keys.levels())
                .put(0, "keys.read_levels", keys.readLevels())
                .put(0, "values.levels", values.levels())
                .put(0, "values.read_levels", values.readLevels())
                .build();
    }

    private static float[] floats(int... values) {
        float[] out = new float[values.length];
        for (int i = 0; i < out.length; ++i) {
            out[i] = values[i];
        }
        return out;
    }

    /** The packed parameters of the layer. */
    byte[] params() {
        return cache.pools().get(2).get(0).toByteArray();
    }

    /** Token ids from begin to end, the same ones for the same salt. */
    static int[] tokens(int salt, int begin, int end) {
        return IntStream.range(begin, end).map(t -> 1000 * salt + t % 700).toArray();
    }

    /** Appends part of a prompt. */
    void prefill(CacheSequence sequence, int... tokens) {
        append(List.of(sequence), List.of(tokens), true);
    }

    /** Appends one token to each sequence; the attention of each. */
    float[][] decode(List<CacheSequence> sequences, int... tokens) {
        List<int[]> rows = new ArrayList<>();
        for (int token : tokens) {
            rows.add(new int[] {token});
        }
        return append(sequences, rows, false);
    }

    /** Decodes tokens one after the other; the attention of the last one. */
    float[] decodeAll(CacheSequence sequence, int... tokens) {
        float[] last = null;
        for (int token : tokens) {
            last = decode(List.of(sequence), token)[0];
        }
        return last;
    }

    /** Queries of a token after RoPE, [heads * headDim]. */
    double[] queries(int token, int position) {
        float[] row = inputs.rows(token, position, position + 1);
        double[] q = new double[layer.heads() * HEAD_DIM];
        Arrays.setAll(q, i -> row[i]);
        Scenario.rope(HEAD_DIM, 0).turn(q, position);
        return q;
    }

    /** Keys and values as attention reads them, [kv heads, tokens, headDim] each. */
    float[][] read(CacheSequence sequence) {
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            int[] none = {0};
            CacheBatch tables = CacheBatch.reserve(scope, cache, List.of(sequence), none, false);
            List<Object> range = List.of(0L, 0L, (long) sequence.length());
            NDList read = Kernels.run(scope, "dequantize", concat(range, state(tables)));
            return new float[][] {read.get(0).toFloatArray(), read.get(1).toFloatArray()};
        }
    }

    private float[][] append(List<CacheSequence> sequences, List<int[]> tokens, boolean prefill) {
        int[] counts = tokens.stream().mapToInt(row -> row.length).toArray();
        try (NDManager scope = Kernels.MANAGER.newSubManager()) {
            CacheBatch tables = CacheBatch.reserve(scope, cache, sequences, counts, prefill);
            float[] rows = rows(sequences, tokens);
            Shape shape = new Shape(rows.length / layer.columns(), layer.columns());
            NDArray qkv = scope.create(rows, shape);
            NDArray starts = scope.create(starts(counts));
            Massive massive = prefill ? massive(sequences, counts) : null;
            NDArray[] entries = Massive.tensors(scope, massive, counts.length);
            List<Object> state = state(tables);
            Kernels.run(
                    scope, "append", concat(List.of(qkv, starts, entries[0], entries[1]), state));
            float[][] out = prefill ? null : attend(scope, qkv, state, counts.length);
            CacheBatch.commit(cache, sequences, tokens);
            return out;
        }
    }

    private float[][] attend(NDManager scope, NDArray qkv, List<Object> state, int batch) {
        float[] all =
                Kernels.run(scope, "attend", concat(List.of(qkv), state)).get(0).toFloatArray();
        int n = all.length / batch;
        float[][] out = new float[batch][];
        for (int b = 0; b < batch; ++b) {
            out[b] = Arrays.copyOfRange(all, b * n, (b + 1) * n);
        }
        return out;
    }

    private List<Object> state(CacheBatch tables) {
        List<NDList> pools = cache.pools();
        return List.of(
                tables.lengths(),
                tables.pageTable(),
                tables.exactTable(),
                pools.get(0).get(0),
                pools.get(1).get(0),
                cache.rope(),
                pools.get(2).get(0));
    }

    private static Object[] concat(List<Object> first, List<Object> second) {
        List<Object> all = new ArrayList<>(first);
        all.addAll(second);
        return all.toArray();
    }

    private float[] rows(List<CacheSequence> sequences, List<int[]> tokens) {
        List<float[]> rows = new ArrayList<>();
        for (int b = 0; b < sequences.size(); ++b) {
            int position = sequences.get(b).length();
            for (int token : tokens.get(b)) {
                rows.add(inputs.rows(token, position, ++position));
            }
        }
        return Scenario.concat(rows.toArray(new float[0][]));
    }

    private static int[] starts(int[] counts) {
        int[] starts = new int[counts.length + 1];
        for (int b = 0; b < counts.length; ++b) {
            starts[b + 1] = starts[b] + counts[b];
        }
        return starts;
    }

    private static Massive massive(List<CacheSequence> sequences, int[] counts) {
        List<List<Massive.Entry>> rows = new ArrayList<>();
        for (int b = 0; b < counts.length; ++b) {
            List<Massive.Entry> row = new ArrayList<>();
            int length = sequences.get(b).length();
            for (int position = 3; position < MASSIVE_POSITIONS; position += 7) {
                if (position >= length && position < length + counts[b]) {
                    row.add(new Massive.Entry(100f - position, position - length));
                }
            }
            rows.add(Massive.largest(row));
        }
        return new Massive(rows);
    }

    @Override
    public void close() {
        cache.close();
    }
}
