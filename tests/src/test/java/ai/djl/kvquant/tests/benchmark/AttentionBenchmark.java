/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.benchmark;

import ai.djl.MalformedModelException;
import ai.djl.engine.Engine;
import ai.djl.kvquant.cache.CacheBatch;
import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.kvquant.cache.CacheMethod;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.calibrate.CalibratedOptions;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.WeightType;
import ai.djl.kvquant.tests.DefaultModel;
import ai.djl.kvquant.torch.Operators;
import ai.djl.kvquant.torch.TorchArchive;
import ai.djl.kvquant.torch.TorchModule;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.annotations.Warmup;

/**
 * Decode attention of one sequence over the caches of all layers in turn, so that nothing stays in
 * the processor's cache, against libtorch's scaled_dot_product_attention in fp32 (the better of its
 * two ways to do GQA). Shapes of SmolLM2-135M.
 */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
@Fork(1)
@Warmup(iterations = 3, time = 1)
@Measurement(iterations = 5, time = 1)
public class AttentionBenchmark {

    private static final int LAYERS = 30;
    private static final int HEADS = 9;
    private static final int KV_HEADS = 3;
    private static final int HEAD_DIM = 64;
    private static final int ROWS = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    private static final String CACHE =
            "lengths: Tensor, page_table: Tensor, exact_table: Tensor, pages: List[Tensor], exact:"
                    + " List[Tensor], params: List[Tensor], rope: Tensor";
    private static final String LAYER =
            "lengths, page_table, exact_table, pages[l], exact[l], rope, params[l]";
    private static final String METHODS =
            "  def append(self: __torch__.M, qkv: Tensor, starts: Tensor, values: Tensor, rows:"
                    + " Tensor, "
                    + CACHE
                    + ") -> Tensor:\n"
                    + "    for l in range(torch.len(pages)):\n"
                    + "      ops.kvquant.append(qkv, starts, values, rows, "
                    + LAYER
                    + ")\n"
                    + "    return qkv\n"
                    + "  def attend(self: __torch__.M, qkv: Tensor, "
                    + CACHE
                    + ") -> Tensor:\n"
                    + "    y = torch.zeros_like(torch.slice(qkv, 1, 0, 576))\n"
                    + "    for l in range(torch.len(pages)):\n"
                    + "      y = torch.add(y, ops.kvquant.attend(qkv, "
                    + LAYER
                    + "))\n"
                    + "    return y\n"
                    + "  def sdpa(self: __torch__.M, q: Tensor, k: List[Tensor], v: List[Tensor],"
                    + " gqa: bool) -> Tensor:\n"
                    + "    y = torch.zeros_like(q)\n"
                    + "    for l in range(torch.len(k)):\n"
                    + "      y = torch.add(y, torch.scaled_dot_product_attention(q, k[l], v[l],"
                    + " None, 0., False, scale=None, enable_gqa=gqa))\n"
                    + "    return y\n";

    /** The cache, or a way to call libtorch. */
    @Param({
        "sdpa-rows",
        "sdpa-gqa",
        "auto",
        "fp16",
        "rotatekv4",
        "rotatekv3",
        "rotatekv2",
        "rotatekv4+window",
        "int4",
        "int2",
        "latent2",
        "kvquant2"
    })
    public String cache;

    /** Tokens of the sequence. */
    @Param("8000")
    public int depth;

    private NDManager manager;
    private TorchModule module;
    private String method;
    private Object[] arguments;

    /** Fills the caches with random keys and values. */
    @Setup(Level.Trial)
    public void setUp() {
        manager = Engine.getEngine("PyTorch").newBaseManager();
        manager.getEngine().setRandomSeed(1);
        module = TorchModule.load(manager, TorchArchive.write(METHODS));
        if (cache.startsWith("sdpa")) {
            prepareLibtorch();
        } else {
            prepareCache();
        }
    }

    private void prepareLibtorch() {
        NDList keys = new NDList();
        NDList values = new NDList();
        for (int i = 0; i < LAYERS; ++i) {
            keys.add(manager.randomNormal(new Shape(1, KV_HEADS, depth, HEAD_DIM)));
            values.add(manager.randomNormal(new Shape(1, KV_HEADS, depth, HEAD_DIM)));
        }
        boolean gqa = "sdpa-gqa".equals(cache);
        Shape shape =
                gqa
                        ? new Shape(1, HEADS, 1, HEAD_DIM)
                        : new Shape(1, KV_HEADS, HEADS / KV_HEADS, HEAD_DIM);
        method = "sdpa";
        arguments = new Object[] {manager.randomNormal(shape), keys, values, gqa};
    }

    private void prepareCache() {
        double[] frequencies = new double[HEAD_DIM / 2];
        for (int i = 0; i < frequencies.length; ++i) {
            frequencies[i] = Math.pow(1e5, -2.0 * i / HEAD_DIM);
        }
        CacheGeometry geometry =
                new CacheGeometry(
                        LAYERS, HEADS, KV_HEADS, HEAD_DIM, 0.125, frequencies, depth + 64);
        String[] parts = cache.split("\\+");
        Map<String, String> options =
                parts.length == 1
                        ? Map.of("kv_cache_dtype", parts[0])
                        : Map.of("kv_cache_dtype", parts[0], "kv_recent_tokens", "128");
        CacheOptions completed = calibrated(new CacheOptions(options), geometry);
        KvCache kv = new KvCache(manager, new Operators(manager), geometry, completed);
        CacheSequence sequence = kv.newSequence();
        try (NDManager scope = manager.newSubManager()) {
            CacheBatch tables =
                    CacheBatch.reserve(scope, kv, List.of(sequence), new int[] {depth}, true);
            NDArray qkv = scope.randomNormal(new Shape(depth, ROWS));
            NDArray starts = scope.create(new int[] {0, depth});
            float[] entries = new float[20];
            int[] owners = new int[20];
            for (int i = 0; i < 20; ++i) {
                entries[i] = 100 - i;
                owners[i] = i / 4;
            }
            run(
                    kv,
                    tables,
                    scope,
                    "append",
                    qkv,
                    starts,
                    scope.create(entries, new Shape(1, 20)),
                    scope.create(owners, new Shape(1, 20)));
        }
        CacheBatch.commit(kv, List.of(sequence), List.of(new int[depth]));
        CacheBatch tables =
                CacheBatch.reserve(manager, kv, List.of(sequence), new int[] {1}, false);
        NDArray qkv = manager.randomNormal(new Shape(1, ROWS));
        NDArray none = manager.create(new Shape(0), DataType.FLOAT32);
        run(kv, tables, manager, "append", qkv, manager.create(new int[] {0, 1}), none, none);
        method = "attend";
        arguments = tables.arguments(kv, qkv);
    }

    /** With the default model's own calibration; kvquant with all slots for outliers in use. */
    private CacheOptions calibrated(CacheOptions options, CacheGeometry geometry) {
        if (!options.needsCalibration()) {
            return options;
        }
        if (options.dtype().keyMethod() == CacheMethod.KVQUANT) {
            return options.forSizes(geometry);
        }
        Path directory = DefaultModel.directory();
        try (LlamaModel model = LlamaModel.load(manager, directory, WeightType.AUTO)) {
            return new CalibratedOptions(model, directory).complete(options);
        } catch (IOException | MalformedModelException e) {
            throw new IllegalStateException("The default model can not be calibrated.", e);
        }
    }

    private void run(KvCache kv, CacheBatch tables, NDManager scope, String name, Object... first) {
        module.run(scope, name, tables.arguments(kv, first)).close();
    }

    /** Attention of one token in every layer. */
    @Benchmark
    public void attend() {
        module.run(manager, method, arguments).close();
    }

    /** Frees everything. */
    @TearDown(Level.Trial)
    public void tearDown() {
        manager.close();
    }
}
