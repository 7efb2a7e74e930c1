/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.benchmark;

import ai.djl.engine.Engine;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.llama.LlamaLanguageModel;
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
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
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
 * A decode step of the default model at depth 0 against its linear layers alone and against reading
 * as many bytes: libtorch's sum of an fp32 tensor of the same size.
 */
@State(Scope.Benchmark)
@BenchmarkMode({Mode.AverageTime})
@OutputTimeUnit(TimeUnit.MILLISECONDS)
@Fork(1)
@Warmup(iterations = 3, time = 1)
@Measurement(iterations = 8, time = 1)
public class StepBenchmark {

    private static final int LAYERS = 30;
    private static final int HIDDEN = 576;
    private static final int KV = 192;
    private static final int INNER = 1536;
    private static final int VOCABULARY = 49152;
    private static final long WEIGHTS =
            (long) LAYERS * (2L * HIDDEN * HIDDEN + 2L * KV * HIDDEN + 3L * HIDDEN * INNER)
                    + (long) VOCABULARY * HIDDEN;
    private static final int PER_LAYER = 7;
    private static final String METHODS =
            "  def read(self: __torch__.M, x: Tensor) -> Tensor:\n"
                    + "    return torch.sum(x)\n"
                    + "  def linear(self: __torch__.M, x: Tensor, w: List[Tensor], norm: Tensor) ->"
                    + " Tensor:\n"
                    + "    none = torch.slice(norm, 0, 0, 0)\n"
                    + "    y = x\n"
                    + "    for l in range((torch.len(w) - 1) // 7):\n"
                    + "      i = l * 7\n"
                    + "      qkv = ops.kvquant.norm_qkv(y, norm, 1.0e-05, w[i], w[i + 1], w[i + 2],"
                    + " none, none, none)\n"
                    + "      a = torch.contiguous(torch.slice(qkv, 1, 0, 576))\n"
                    + "      y = ops.kvquant.linear_add(a, w[i + 3], none, y)\n"
                    + "      h = ops.kvquant.norm_mlp(y, norm, 1.0e-05, w[i + 4], w[i + 5], none,"
                    + " none)\n"
                    + "      y = ops.kvquant.linear_add(h, w[i + 6], none, y)\n"
                    + "    return ops.kvquant.norm_linear(y, norm, 1.0e-05, w[torch.len(w) - 1])\n";

    /** What is run: a read of as many bytes, the linear layers, or whole steps with a cache. */
    @Param({"read", "linear", "auto", "rotatekv4"})
    public String what;

    /** Sequences that are decoded together. */
    @Param("1")
    public int batch;

    private NDManager manager;
    private TorchModule module;
    private Object[] arguments;
    private LlamaModel model;
    private DecodingBatch sequences;
    private int[] tokens;

    /**
     * Prepares what is run.
     *
     * @throws Exception if the model can not be loaded
     */
    @Setup(Level.Trial)
    public void setUp() throws Exception {
        manager = Engine.getEngine("PyTorch").newBaseManager();
        module = TorchModule.load(manager, TorchArchive.write(METHODS));
        if ("read".equals(what)) {
            arguments = new Object[] {manager.ones(new Shape(WEIGHTS / 2))};
        } else if ("linear".equals(what)) {
            new Operators(manager);
            NDList weights = new NDList();
            for (int i = 0; i < LAYERS * PER_LAYER; ++i) {
                weights.add(weight(i % PER_LAYER));
            }
            weights.add(random(VOCABULARY, HIDDEN));
            NDArray norm = manager.ones(new Shape(HIDDEN)).toType(DataType.FLOAT16, false);
            NDArray x = manager.randomNormal(new Shape(batch, HIDDEN));
            arguments = new Object[] {x, weights, norm};
        } else {
            model = LlamaModel.load(manager, DefaultModel.directory(), WeightType.AUTO);
        }
        tokens = new int[batch];
        Arrays.fill(tokens, 5);
    }

    private NDArray weight(int index) {
        return switch (index) {
            case 0, 3 -> random(HIDDEN, HIDDEN);
            case 1, 2 -> random(KV, HIDDEN);
            case 4, 5 -> random(INNER, HIDDEN);
            default -> random(HIDDEN, INNER);
        };
    }

    private NDArray random(int rows, int columns) {
        return manager.randomNormal(new Shape(rows, columns))
                .mul(0.02f)
                .toType(DataType.FLOAT16, false);
    }

    /** Starts again at depth 0, so that no iteration measures long sequences. */
    @Setup(Level.Iteration)
    public void restart() {
        if (model != null) {
            close();
            LlamaLanguageModel languageModel = model.withCache(CacheOptions.of(what));
            List<int[]> prompts =
                    IntStream.range(0, batch).mapToObj(i -> new int[] {i + 3}).toList();
            sequences = languageModel.prefill(prompts);
        }
    }

    private void close() {
        if (sequences != null) {
            sequences.close();
        }
    }

    /** One step. */
    @Benchmark
    public void step() {
        if (sequences != null) {
            sequences.step(tokens);
        } else {
            module.run(manager, what, arguments).close();
        }
    }

    /** Frees everything. */
    @TearDown(Level.Trial)
    public void tearDown() {
        close();
        manager.close();
    }
}
