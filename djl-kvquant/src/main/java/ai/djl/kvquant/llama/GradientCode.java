/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

/**
 * TorchScript code of the loss's gradients, layer by layer; {@link LlamaCode} fills in the sizes.
 *
 * <p>Its methods run outside of inference mode, with plain operators, which autograd knows. Weights
 * were made inside of it and can not be saved for a backward pass: a layer's are copied.
 */
final class GradientCode {

    /**
     * loss_gradient: of the mean cross-entropy of the tokens that follow, with respect to the last
     * layer's output x. layer_gradient: with respect to a layer's input x, keys and values before
     * RoPE, from that of its output; and the layer's projections.
     */
    static final String METHODS =
            """
          def copied(self: __torch__.M, i: int) -> Tensor:
            return torch.to((self.w)[i], 6, False, True)
          def loss_gradient(self: __torch__.M, x: Tensor, targets: Tensor) -> Tensor:
            n = torch.size(targets, 0)
            norm = self.copied(1)
            head = self.copied(2)
            parts = annotate(List[Tensor], [])
            for i in range((n + (QUERY_BLOCK - 1)) // QUERY_BLOCK):
              begin = i * QUERY_BLOCK
              end = ops.prim.min(n, begin + QUERY_BLOCK)
              part = torch.requires_grad_(torch.clone(torch.slice(x, 0, begin, end)), True)
              y = torch.linear(torch.rms_norm(part, [HIDDEN], norm, EPS), head)
              t = torch.unsqueeze(torch.slice(targets, 0, begin, end), 1)
              loss = torch.neg(torch.sum(torch.gather(torch.log_softmax(y, -1), 1, t)))
              g = torch.grad([torch.div(loss, n)], [part])
              _0 = torch.append(parts, torch._unwrap_optional(g[0]))
            _1 = torch.append(parts, torch.zeros_like(torch.slice(x, 0, 0, 1)))
            return torch.cat(parts)
          def turned(self: __torch__.M, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            half = HEAD_DIM // 2
            a = torch.slice(x, 2, 0, half)
            b = torch.slice(x, 2, half, HEAD_DIM)
            c = torch.sub(torch.mul(a, cos), torch.mul(b, sin))
            d = torch.add(torch.mul(b, cos), torch.mul(a, sin))
            return torch.transpose(torch.cat([c, d], 2), 0, 1)
          def layer_gradient(self: __torch__.M, x: Tensor, gradient: Tensor, cos: Tensor, sin: Tensor, layer: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
            i = int(layer) * LAYER_WEIGHTS + SHARED_WEIGHTS
            n = torch.size(x, 0)
            x1 = torch.requires_grad_(torch.clone(x), True)
            h = torch.rms_norm(x1, [HIDDEN], self.copied(i), EPS)
            q = torch.linear(h, self.copied(i + 1)BIAS_Q)
            k = torch.linear(h, self.copied(i + 2)BIAS_K)
            v = torch.linear(h, self.copied(i + 3)BIAS_V)
            qt = self.turned(torch.reshape(q, [n, HEADS, HEAD_DIM]), cos, sin)
            kt = self.turned(torch.reshape(k, [n, KV_HEADS, HEAD_DIM]), cos, sin)
            vt = torch.transpose(torch.reshape(v, [n, KV_HEADS, HEAD_DIM]), 0, 1)
            sizes = [KV_HEADS, GROUPS, n, HEAD_DIM]
            k1 = torch.expand(torch.unsqueeze(kt, 1), sizes)
            v1 = torch.expand(torch.unsqueeze(vt, 1), sizes)
            o = torch.scaled_dot_product_attention(torch.reshape(qt, sizes), k1, v1, None, 0., True, scale=SCALE)
            a = torch.reshape(torch.permute(o, [2, 0, 1, 3]), [n, HEADS * HEAD_DIM])
            x2 = torch.add(x1, torch.linear(a, self.copied(i + 7)BIAS_O))
            h2 = torch.rms_norm(x2, [HIDDEN], self.copied(i + 9), EPS)
            g = torch.silu(torch.linear(h2, self.copied(i + 10)BIAS_GATE))
            u = torch.linear(h2, self.copied(i + 11)BIAS_UP)
            y = torch.add(x2, torch.linear(torch.mul(g, u), self.copied(i + 14)BIAS_DOWN))
            gradients = torch.grad([y], [x1, k, v], annotate(List[Optional[Tensor]], [gradient]))
            gx = torch._unwrap_optional(gradients[0])
            gk = torch.reshape(torch._unwrap_optional(gradients[1]), [n, KV_HEADS, HEAD_DIM])
            gv = torch.reshape(torch._unwrap_optional(gradients[2]), [n, KV_HEADS, HEAD_DIM])
            qkv = torch.reshape(torch.detach(torch.cat([q, k, v], 1)), [n, HEADS + 2 * KV_HEADS, HEAD_DIM])
            return (gx, gk, gv, qkv)
        """;

    private GradientCode() {}
}
