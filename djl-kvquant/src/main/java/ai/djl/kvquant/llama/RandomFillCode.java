/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

/**
 * TorchScript code that appends random projections to all layers, as if a prompt had made them;
 * {@link LlamaCode} fills in the sizes.
 */
final class RandomFillCode {

    static final String METHODS =
            """
              def random_fill(self: __torch__.M, n: int, starts: Tensor, CACHE_PARAMETERS) -> Tensor:
                none = (self.w)[3]
                qkv = self.enter(torch.randn([n, (HEADS + 2 * KV_HEADS) * HEAD_DIM], DEVICE_OF(starts)))
                for l in range(LAYERS):
                  ops.kvquant.append(qkv, starts, none, none, LAYER_CACHE)
                return none
            """;

    private RandomFillCode() {}
}
