/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

/**
 * TorchScript code of a layer where libtorch multiplies matrices at the speed of memory, as on
 * GPUs; {@link LlamaCode} fills in the sizes.
 *
 * <p>Of a layer's weights, those of q, k and v are joined in the place of q, and those of gate and
 * up in the place of gate; biases likewise. Matrices are kept transposed, as views. A processor is
 * hardly faster with a call than a GPU with what it asks for, so a layer of a decoding step makes
 * eight: norm; q k v; append and attend; output, added in place; norm; gate and up; silu; down,
 * added in place.
 */
final class FusedCode {

    static final String LOAD =
            """
          def load(self: __torch__.M, w: List[Tensor]) -> Tensor:
            turned = annotate(List[Tensor], [])
            for i in range(torch.len(w)):
              x = w[i]
              if i >= SHARED_WEIGHTS:
                y = self.turned_matrix(x)
              else:
                y = x
              _0 = torch.append(turned, y)
            self.w = turned
            return w[3]
          def turned_matrix(self: __torch__.M, x: Tensor) -> Tensor:
            if torch.dim(x) == 2:
              y = torch.t(x)
            else:
              y = x
            return y
        """;

    static final String METHODS =
            """
          def wide(self: __torch__.M, i: int) -> Tensor:
            return torch.t((self.w)[i])
          def times(self: __torch__.M, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            if torch.size(bias, 0) > 0:
              y = torch.addmm(bias, x, weight)
            else:
              y = torch.mm(x, weight)
            return y
          def add_times(self: __torch__.M, sum: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y = torch.addmm_(sum, x, weight)
            if torch.size(bias, 0) > 0:
              _0 = torch.add_(y, bias)
            return y
          def qkv(self: __torch__.M, x: Tensor, l: int) -> Tensor:
            w = self.w
            i = l * LAYER_WEIGHTS + SHARED_WEIGHTS
            return self.times(ops.kvquant.norm(x, w[i], EPS), w[i + 1], w[i + 4])
          def advance(self: __torch__.M, x: Tensor, a: Tensor, l: int) -> Tensor:
            w = self.w
            i = l * LAYER_WEIGHTS + SHARED_WEIGHTS
            x1 = self.add_times(x, a, w[i + 7], w[i + 8])
            h = ops.kvquant.norm(x1, w[i + 9], EPS)
            g = ops.kvquant.gate(self.times(h, w[i + 10], w[i + 12]))
            return self.add_times(x1, g, w[i + 14], w[i + 15])
          def finish(self: __torch__.M, x: Tensor, a: Tensor, l: int) -> Tensor:
            return self.advance(torch.clone(x), a, l)
          def normed(self: __torch__.M, hidden: Tensor) -> Tensor:
            return ops.kvquant.norm(self.enter(hidden), (self.w)[1], EPS)
          def final_norm(self: __torch__.M, hidden: Tensor) -> Tensor:
            return torch.to(self.normed(hidden), 6)
          def logits(self: __torch__.M, hidden: Tensor) -> Tensor:
            return torch.to(torch.linear(self.normed(hidden), (self.w)[2]), 6)
        """;

    private FusedCode() {}
}
