/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import ai.djl.engine.Engine;
import ai.djl.kvquant.torch.Operators;
import ai.djl.kvquant.torch.TorchArchive;
import ai.djl.kvquant.torch.TorchModule;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;

/** The operators as TorchScript sees them: modules whose methods pass their arguments on. */
final class Kernels {

    static final NDManager MANAGER = Engine.getEngine("PyTorch").newBaseManager();
    static final Operators OPERATORS = new Operators(MANAGER);

    /** CUDA's operators for machines without a GPU: what native-ops/emulator is built as. */
    private static final Path EMULATED_LIBRARY =
            Path.of(System.getProperty("kvquant.emulated", ""));

    private static final String CACHE =
            "lengths: Tensor, page_table: Tensor, exact_table: Tensor, pages: Tensor, exact: Tensor,"
                    + " rope: Tensor, params: Tensor";

    /** Those that CUDA has, too. */
    private static final String ON_CACHES =
            """
          def append(self: __torch__.M, qkv: Tensor, starts: Tensor, values: Tensor, rows: Tensor, CACHE) -> Tensor:
            ops.kvquant.append(qkv, starts, values, rows, lengths, page_table, exact_table, pages, exact, rope, params)
            return lengths
          def attend(self: __torch__.M, qkv: Tensor, CACHE) -> Tensor:
            return ops.kvquant.attend(qkv, lengths, page_table, exact_table, pages, exact, rope, params)
          def dequantize(self: __torch__.M, sequence: int, begin: int, end: int, CACHE) -> Tuple[Tensor, Tensor]:
            return ops.kvquant.dequantize(sequence, begin, end, lengths, page_table, exact_table, pages, exact, rope, params)
          def rope_heads(self: __torch__.M, qkv: Tensor, starts: Tensor, CACHE) -> Tuple[Tensor, Tensor, Tensor]:
            return ops.kvquant.rope_heads(qkv, starts, lengths, page_table, exact_table, pages, exact, rope, params)
          def massive_entries(self: __torch__.M, x: Tensor, starts: Tensor) -> Tuple[Tensor, Tensor]:
            return ops.kvquant.massive_entries(x, starts)
        """
                    .replace("CACHE", CACHE);

    private static final String OTHERS =
            """
          def layout(self: __torch__.M, params: Tensor) -> Tensor:
            return ops.kvquant.layout(params)
          def norm_qkv(self: __torch__.M, x: Tensor, norm: Tensor, eps: float, q: Tensor, k: Tensor, v: Tensor, q_bias: Tensor, k_bias: Tensor, v_bias: Tensor) -> Tensor:
            return ops.kvquant.norm_qkv(x, norm, eps, q, k, v, q_bias, k_bias, v_bias)
          def norm_mlp(self: __torch__.M, x: Tensor, norm: Tensor, eps: float, gate: Tensor, up: Tensor, gate_bias: Tensor, up_bias: Tensor) -> Tensor:
            return ops.kvquant.norm_mlp(x, norm, eps, gate, up, gate_bias, up_bias)
          def linear_add(self: __torch__.M, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
            return ops.kvquant.linear_add(x, weight, bias, residual)
          def norm_linear(self: __torch__.M, x: Tensor, norm: Tensor, eps: float, weight: Tensor) -> Tensor:
            return ops.kvquant.norm_linear(x, norm, eps, weight)
          def view_bfloat16(self: __torch__.M, raw: Tensor) -> Tensor:
            return ops.kvquant.view_bfloat16(raw)
          def widen(self: __torch__.M, x: Tensor) -> Tensor:
            return torch.to(x, 6)
          def transpose(self: __torch__.M, x: Tensor) -> Tensor:
            return torch.transpose(x, 0, 1)
        """;

    private static final TorchModule CPU = module(ON_CACHES + OTHERS);

    private static TorchModule module = CPU;

    private Kernels() {}

    private static TorchModule module(String code) {
        return TorchModule.load(MANAGER, TorchArchive.write(code));
    }

    /** Calls a method of the module. */
    static NDList run(NDManager scope, String method, Object... arguments) {
        return module.run(scope, method, arguments);
    }

    /** The variants that this processor can run, the portable one first. */
    static List<Operators.Variant> variants() {
        return Arrays.asList(Operators.Variant.values())
                .subList(0, OPERATORS.bestVariant().ordinal() + 1);
    }

    /** Tells whether CUDA's operators were built for the emulator. */
    static boolean canEmulateCuda() {
        return Files.isRegularFile(EMULATED_LIBRARY);
    }

    /** Chooses who works on caches from now on: CUDA's operators in the emulator, or the CPU's. */
    static void emulateCuda(boolean emulate) {
        module = emulate ? Emulated.MODULE : CPU;
    }

    /** Loaded when it is needed. */
    private static final class Emulated {

        static final TorchModule MODULE = load();

        private static TorchModule load() {
            System.load(EMULATED_LIBRARY.toAbsolutePath().toString());
            return module(ON_CACHES.replace("ops.kvquant.", "ops.kvquant_emulated."));
        }
    }
}
