/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

/**
 * TorchScript code of some layers of a prompt's chunk, so that other sequences can be decoded
 * between them; {@link LlamaCode} fills in the sizes.
 */
final class ChunkCode {

    /**
     * Layers [begin, end) on the new tokens of one sequence, x [tokens, hidden], of which past
     * tokens are stored: what {@code prefill} does between embedding and logits.
     */
    static final String METHODS =
            """
              def prefill_layers_of_chunk(self: __torch__.M, x: Tensor, starts: Tensor, past: int, biased_from: int, biased_to: int, begin: int, end: int, massive: bool, CACHE_PARAMETERS) -> Tensor:
                x = self.enter(x)
                for i in range(end - begin):
                  l = begin + i
                  values, rows, = self.massive_entries(x, starts, massive)
                  qkv = self.qkv(x, l)
                  q, k, v, = ops.kvquant.rope_heads(qkv, starts, LAYER_CACHE)
                  a = self.attend_chunk(q, k, v, 0, past, biased_from, biased_to, l, CACHE)
                  ops.kvquant.append(qkv, starts, values, rows, LAYER_CACHE)
                  x = self.finish(x, a, l)
                return torch.to(x, 6)
            """;

    private ChunkCode() {}
}
