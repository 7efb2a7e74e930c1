/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

/**
 * How a model computes.
 *
 * @param fused whether layers are {@link FusedCode}'s, with joined weights of the type in which is
 *     computed; else weights have any type and our own operators read them
 * @param type the type in which layers are computed; FP32 unless fused
 * @param attention libtorch's attention with a log-sum-exp
 */
record Graph(boolean fused, WeightType type, Attention attention) {

    /** On a CPU: fp32, whatever the weights are. */
    static final Graph CPU = new Graph(false, WeightType.FP32, Attention.CPU);

    /** On a GPU. */
    static Graph gpu(WeightType type) {
        boolean wide = type == WeightType.FP32;
        return new Graph(true, type, wide ? Attention.EFFICIENT : Attention.FLASH);
    }

    /** Attention of a chunk that returns the log-sum-exp of its scores. */
    enum Attention {
        /** On a CPU. */
        CPU(
                "o, lse, = torch._scaled_dot_product_flash_attention_for_cpu(q, k1, v1, 0., causal,"
                        + " attn_mask=None, scale=SCALE)"),
        /** On a GPU, in 16 bits. */
        FLASH(
                "o, lse, _a, _b, _c, _d, _e, _f, _g, = torch._scaled_dot_product_flash_attention(q,"
                        + " k1, v1, 0., causal, False, scale=SCALE)"),
        /** On a GPU, in any type; its log-sum-exp is padded. */
        EFFICIENT(
                "o, lse, _a, _b, = torch._scaled_dot_product_efficient_attention(q,"
                        + " torch.contiguous(k1), torch.contiguous(v1), None, True, 0., causal,"
                        + " scale=SCALE)");

        private final String call;

        Attention(String call) {
            this.call = call;
        }
    }

    /** The method that turns a tensor into the type in which layers are computed. */
    String entering() {
        return """
          def enter(self: __torch__.M, x: Tensor) -> Tensor:
            return torch.to(x, %d)
        """
                .formatted(type.torchType());
    }

    /**
     * The method for queries [KV, G, T, D] over keys and values [KV, S, D]. Heads are laid out as
     * [KV, G]: unexpanded GQA heads would be read out of bounds. Its results are FLOAT32.
     */
    String flash() {
        return """
          def flash(self: __torch__.M, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tuple[Tensor, Tensor]:
            k1 = torch.expand(torch.unsqueeze(k, 1), [KV_HEADS, GROUPS, torch.size(k, 1), HEAD_DIM])
            v1 = torch.expand(torch.unsqueeze(v, 1), [KV_HEADS, GROUPS, torch.size(v, 1), HEAD_DIM])
            %s
            return (torch.to(o, 6), torch.slice(lse, 2, 0, torch.size(q, 2)))
        """
                .formatted(attention.call);
    }
}
