/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import ai.djl.engine.Engine;
import ai.djl.kvquant.torch.Operators;
import ai.djl.kvquant.torch.TorchArchive;
import ai.djl.kvquant.torch.TorchModule;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.List;

/** The operators as TorchScript sees them: a module whose methods pass their arguments on. */
final class Kernels {

    static final NDManager MANAGER = Engine.getEngine("PyTorch").newBaseManager();
    static final Operators OPERATORS = new Operators(MANAGER);

    private static final String CACHE =
            "lengths: Tensor, page_table: Tensor, exact_table: Tensor, pages: Tensor, exact: Tensor,"
                    + " rope: Tensor, params: Tensor";
    private static final TorchModule MODULE = TorchModule.load(MANAGER, TorchArchive.write(code()));

    private Kernels() {}

    private static String code() {
        return """
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
        """
                .replace("CACHE", CACHE);
    }

    /** Calls a method of the module. */
    static NDList run(NDManager scope, String method, Object... arguments) {
        return MODULE.run(scope, method, arguments);
    }

    /** The variants that this processor can run, the portable one first. */
    static List<Operators.Variant> variants() {
        return Arrays.asList(Operators.Variant.values())
                .subList(0, OPERATORS.bestVariant().ordinal() + 1);
    }
}
