/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.kvquant.cache.CacheGeometry;

/**
 * Writes the TorchScript code that takes keys and values of a traced model to a cache and back.
 * They have their positions in them already: the cache's RoPE turns by no angle.
 */
final class TracedCode {

    /**
     * read: keys and values of all layers, [sequences, heads, columns, headDim], sequences of past
     * tokens at the right end. write: of the new columns behind past ones, those in rows [tokens]
     * of [sequences * columns] are appended.
     */
    private static final String METHODS =
            """
          def padded(self: __torch__.M, x: Tensor, columns: int) -> Tensor:
            return torch.constant_pad_nd(x, [0, 0, columns - torch.size(x, 1), 0], 0)
          def read(self: __torch__.M, past: List[int], columns: int, CACHE_PARAMETERS) -> List[Tensor]:
            both = annotate(List[Tensor], [])
            for l in range(LAYERS):
              keys = annotate(List[Tensor], [])
              values = annotate(List[Tensor], [])
              for b in range(torch.len(past)):
                if past[b] > 0:
                  k, v, = ops.kvquant.dequantize(b, 0, past[b], LAYER_CACHE)
                else:
                  k, v = torch.zeros([HEADS, 0, HEAD_DIM]), torch.zeros([HEADS, 0, HEAD_DIM])
                _0 = torch.append(keys, self.padded(k, columns))
                _1 = torch.append(values, self.padded(v, columns))
              _2 = torch.append(both, torch.stack(keys))
              _3 = torch.append(both, torch.stack(values))
            return both
          def rows(self: __torch__.M, x: Tensor, past: int, index: Tensor) -> Tensor:
            x1 = torch.slice(torch.to(x, 6), 2, past, torch.size(x, 2))
            x2 = torch.reshape(torch.permute(x1, [0, 2, 1, 3]), [-1, HEADS * HEAD_DIM])
            return torch.index_select(x2, 0, index)
          def write(self: __torch__.M, both: List[Tensor], past: int, index: Tensor, starts: Tensor, CACHE_PARAMETERS) -> Tensor:
            none = torch.zeros([0])
            for l in range(LAYERS):
              k = self.rows(both[2 * l], past, index)
              v = self.rows(both[2 * l + 1], past, index)
              ops.kvquant.append(torch.cat([k, k, v], 1), starts, none, none, LAYER_CACHE)
            return none
        """;

    private TracedCode() {}

    /** The methods for the given sizes. */
    static String methods(CacheGeometry geometry) {
        return METHODS.replace(
                        "CACHE_PARAMETERS",
                        "lengths: Tensor, page_table: Tensor, exact_table: Tensor, pages:"
                                + " List[Tensor], exact: List[Tensor], params: List[Tensor], rope:"
                                + " Tensor")
                .replace(
                        "LAYER_CACHE",
                        "lengths, page_table, exact_table, pages[l], exact[l], rope, params[l]")
                .replace("LAYERS", Integer.toString(geometry.numLayers()))
                .replace("HEADS", Integer.toString(geometry.numKvHeads()))
                .replace("HEAD_DIM", Integer.toString(geometry.headDim()));
    }
}
