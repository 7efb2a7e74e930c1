/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

/**
 * Writes the TorchScript code of a LLaMA model for a given configuration.
 *
 * <p>The module's list {@code w} holds the weights: embedding, final norm, output projection, an
 * empty tensor, then {@link #LAYER_WEIGHTS} tensors per layer in the order of {@link LlamaWeights}.
 * Its methods take the state of a cache: lengths, page_table, exact_table, and per layer pages,
 * exact and params, and rope.
 */
final class LlamaCode {

    /** Tensors before those of the first layer. */
    static final int SHARED_WEIGHTS = 4;

    /** Tensors of a layer. */
    static final int LAYER_WEIGHTS = 16;

    /**
     * Up to this many rows, linear layers run at the speed of memory in our operators; above, in
     * libtorch's.
     */
    private static final int FEW_ROWS = 64;

    /** Tokens of the past that are dequantized at once during prefill. */
    private static final int PAST_SEGMENT = 4096;

    /** Rows that a layer's MLP works on at once, where a text is run layer by layer. */
    private static final int LAYER_ROWS = 2048;

    /** Queries of a block in streaming attention. */
    private static final int QUERY_BLOCK = 256;

    private static final String CACHE_PARAMETERS =
            "lengths: Tensor, page_table: Tensor, exact_table: Tensor, pages: List[Tensor], exact:"
                    + " List[Tensor], params: List[Tensor], rope: Tensor";
    private static final String LAYER_CACHE =
            "lengths, page_table, exact_table, pages[l], exact[l], rope, params[l]";
    private static final String CACHE =
            "lengths, page_table, exact_table, pages, exact, params, rope";

    private static final String LOAD =
            """
          def load(self: __torch__.M, w: List[Tensor]) -> Tensor:
            self.w = w
            return w[3]
        """;
    private static final String EMBED =
            """
          def embed(self: __torch__.M, ids: Tensor) -> Tensor:
            return torch.to(torch.embedding((self.w)[0], ids), 6)
        """;

    private final LlamaConfig config;
    private final Graph graph;

    LlamaCode(LlamaConfig config, Graph graph) {
        this.config = config;
        this.graph = graph;
    }

    /** All methods of the module. */
    String methods() {
        return (graph.fused() ? fill(FusedCode.LOAD) : LOAD)
                + EMBED
                + fill(graph.entering())
                + (graph.fused() ? fill(biased(FusedCode.METHODS)) : layers() + logits())
                + fill(graph.flash())
                + decode()
                + attention()
                + prefill()
                + fill(ChunkCode.METHODS)
                + layer()
                + fill(RandomFillCode.METHODS)
                + streaming()
                + fill(biased(GradientCode.METHODS));
    }

    /**
     * Few rows: fused operators on the weights as they are. Many: libtorch's, a layer's weights
     * widened once.
     */
    private String layers() {
        String text =
                """
          def wide(self: __torch__.M, i: int) -> Tensor:
            return torch.to((self.w)[i], 6)
          def qkv(self: __torch__.M, x: Tensor, l: int) -> Tensor:
            w = self.w
            i = l * LAYER_WEIGHTS + SHARED_WEIGHTS
            if torch.size(x, 0) <= FEW_ROWS:
              y = ops.kvquant.norm_qkv(x, w[i], EPS, w[i + 1], w[i + 2], w[i + 3], w[i + 4], w[i + 5], w[i + 6])
            else:
              h = torch.rms_norm(x, [HIDDEN], self.wide(i), EPS)
              q = torch.linear(h, self.wide(i + 1)BIAS_Q)
              k = torch.linear(h, self.wide(i + 2)BIAS_K)
              v = torch.linear(h, self.wide(i + 3)BIAS_V)
              y = torch.cat([q, k, v], 1)
            return y
          def finish(self: __torch__.M, x: Tensor, a: Tensor, l: int) -> Tensor:
            w = self.w
            i = l * LAYER_WEIGHTS + SHARED_WEIGHTS
            if torch.size(x, 0) <= FEW_ROWS:
              x1 = ops.kvquant.linear_add(a, w[i + 7], w[i + 8], x)
              h = ops.kvquant.norm_mlp(x1, w[i + 9], EPS, w[i + 10], w[i + 11], w[i + 12], w[i + 13])
              y = ops.kvquant.linear_add(h, w[i + 14], w[i + 15], x1)
            else:
              x2 = torch.add(x, torch.linear(a, self.wide(i + 7)BIAS_O))
              h2 = torch.rms_norm(x2, [HIDDEN], self.wide(i + 9), EPS)
              g = torch.silu(torch.linear(h2, self.wide(i + 10)BIAS_GATE))
              u = torch.linear(h2, self.wide(i + 11)BIAS_UP)
              y = torch.add(x2, torch.linear(torch.mul(g, u), self.wide(i + 14)BIAS_DOWN))
            return y
          def advance(self: __torch__.M, x: Tensor, a: Tensor, l: int) -> Tensor:
            return self.finish(x, a, l)
        """;
        return fill(biased(text));
    }

    private String biased(String text) {
        boolean attention = config.attentionBias();
        boolean mlp = config.mlpBias();
        return text.replace("BIAS_Q", bias(attention, 4))
                .replace("BIAS_K", bias(attention, 5))
                .replace("BIAS_V", bias(attention, 6))
                .replace("BIAS_O", bias(attention, 8))
                .replace("BIAS_GATE", bias(mlp, 12))
                .replace("BIAS_UP", bias(mlp, 13))
                .replace("BIAS_DOWN", bias(mlp, 15));
    }

    private static String bias(boolean present, int offset) {
        return present ? ", self.wide(i + " + offset + ")" : "";
    }

    private String logits() {
        return fill(
                """
          def logits(self: __torch__.M, x: Tensor) -> Tensor:
            w = self.w
            if torch.size(x, 0) <= FEW_ROWS:
              y = ops.kvquant.norm_linear(x, w[1], EPS, w[2])
            else:
              y = torch.linear(torch.rms_norm(x, [HIDDEN], self.wide(1), EPS), self.wide(2))
            return y
          def final_norm(self: __torch__.M, x: Tensor) -> Tensor:
            return torch.rms_norm(x, [HIDDEN], self.wide(1), EPS)
        """);
    }

    /** One token per sequence. advance is finish, and may overwrite x. */
    private String decode() {
        return fill(
                """
          def decode_layers(self: __torch__.M, ids: Tensor, starts: Tensor, CACHE_PARAMETERS) -> Tensor:
            x = self.enter(self.embed(ids))
            for l in range(LAYERS):
              a = ops.kvquant.append_attend(self.qkv(x, l), starts, LAYER_CACHE)
              x = self.advance(x, a, l)
            return torch.to(x, 6)
          def decode(self: __torch__.M, ids: Tensor, starts: Tensor, CACHE_PARAMETERS) -> Tensor:
            return self.logits(self.decode_layers(ids, starts, CACHE))
        """);
    }

    /**
     * Attention of the new tokens of one sequence, [KV, G, T, D], over themselves in full precision
     * and over the past as it is stored, merged by log-sum-exp; of the past, the scores of tokens
     * [biased_from, biased_to) have a bias. Heads are laid out as [KV, G]: unexpanded GQA heads
     * would be read out of bounds.
     */
    private String attention() {
        return fill(
                """
          def add_past(self: __torch__.M, o: Tensor, lse: Tensor, q: Tensor, bias: Tensor, b: int, begin: int, end: int, l: int, CACHE_PARAMETERS) -> Tuple[Tensor, Tensor]:
            for i in range((end - begin + (PAST_SEGMENT - 1)) // PAST_SEGMENT):
              first = begin + i * PAST_SEGMENT
              k2, v2, = ops.kvquant.dequantize(b, first, ops.prim.min(end, first + PAST_SEGMENT), LAYER_CACHE)
              o2, lse2, = self.flash(q, self.enter(k2), self.enter(v2), False)
              lse2 = torch.add(lse2, bias)
              m = torch.maximum(lse, lse2)
              w1 = torch.unsqueeze(torch.exp(torch.sub(lse, m)), -1)
              w2 = torch.unsqueeze(torch.exp(torch.sub(lse2, m)), -1)
              total = torch.add(w1, w2)
              o = torch.div(torch.add(torch.mul(o, w1), torch.mul(o2, w2)), total)
              lse = torch.add(m, torch.log(torch.squeeze(total, -1)))
            return (o, lse)
          def attend_chunk(self: __torch__.M, q: Tensor, k: Tensor, v: Tensor, b: int, past: int, biased_from: int, biased_to: int, l: int, CACHE_PARAMETERS) -> Tensor:
            q1 = torch.reshape(q, [KV_HEADS, GROUPS, torch.size(q, 1), HEAD_DIM])
            o, lse, = self.flash(q1, k, v, True)
            zero = torch.zeros([1, 1, 1], DEVICE_OF(q))
            if biased_to > biased_from:
              bias = torch.reshape(ops.kvquant.score_bias(torch.contiguous(q), params[l]), [KV_HEADS, GROUPS, torch.size(q, 1)])
              o, lse, = self.add_past(o, lse, q1, zero, b, 0, biased_from, l, CACHE)
              o, lse, = self.add_past(o, lse, q1, bias, b, biased_from, biased_to, l, CACHE)
              o, lse, = self.add_past(o, lse, q1, zero, b, biased_to, past, l, CACHE)
            else:
              o, lse, = self.add_past(o, lse, q1, zero, b, 0, past, l, CACHE)
            return self.enter(torch.reshape(torch.permute(o, [2, 0, 1, 3]), [torch.size(q, 1), HEADS * HEAD_DIM]))
        """);
    }

    /**
     * New tokens of prompts: ids [N] of all sequences one after the other, first and past their
     * beginnings and stored tokens, last the rows of N whose logits are wanted.
     */
    private String prefill() {
        return fill(
                """
          def massive_entries(self: __torch__.M, x: Tensor, starts: Tensor, wanted: bool) -> Tuple[Tensor, Tensor]:
            none = (self.w)[3]
            if wanted:
              values, rows, = ops.kvquant.massive_entries(x, starts)
            else:
              values, rows = none, none
            return (values, rows)
          def prefill_layers(self: __torch__.M, ids: Tensor, starts: Tensor, first: List[int], past: List[int], biased_from: List[int], biased_to: List[int], massive: bool, CACHE_PARAMETERS) -> Tensor:
            x = self.enter(self.embed(ids))
            for l in range(LAYERS):
              values, rows, = self.massive_entries(x, starts, massive)
              qkv = self.qkv(x, l)
              q, k, v, = ops.kvquant.rope_heads(qkv, starts, LAYER_CACHE)
              outs = annotate(List[Tensor], [])
              for b in range(torch.len(past)):
                qb = torch.slice(q, 1, first[b], first[b + 1])
                kb = torch.slice(k, 1, first[b], first[b + 1])
                vb = torch.slice(v, 1, first[b], first[b + 1])
                _0 = torch.append(outs, self.attend_chunk(qb, kb, vb, b, past[b], biased_from[b], biased_to[b], l, CACHE))
              ops.kvquant.append(qkv, starts, values, rows, LAYER_CACHE)
              x = self.advance(x, torch.cat(outs), l)
            return torch.to(x, 6)
          def prefill(self: __torch__.M, ids: Tensor, starts: Tensor, first: List[int], past: List[int], biased_from: List[int], biased_to: List[int], last: Tensor, massive: bool, CACHE_PARAMETERS) -> Tensor:
            x = self.prefill_layers(ids, starts, first, past, biased_from, biased_to, massive, CACHE)
            return self.logits(torch.index_select(x, 0, last))
        """);
    }

    /**
     * One layer on one text, in full precision: its output, its projections, keys after RoPE,
     * values and the output of attention; and what caches of other kinds make of the projections.
     */
    private String layer() {
        return fill(
                """
          def layer(self: __torch__.M, hidden: Tensor, starts: Tensor, l: int, CACHE_PARAMETERS) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
            x = self.enter(hidden)
            qkv = self.qkv(x, l)
            q, k, v, = ops.kvquant.rope_heads(qkv, starts, LAYER_CACHE)
            a = self.attend_chunk(q, k, v, 0, 0, 0, 0, l, CACHE)
            heads = torch.reshape(qkv, [torch.size(x, 0), HEADS + 2 * KV_HEADS, HEAD_DIM])
            n = torch.size(x, 0)
            outs = annotate(List[Tensor], [])
            for i in range((n + (LAYER_ROWS - 1)) // LAYER_ROWS):
              begin = i * LAYER_ROWS
              end = ops.prim.min(n, begin + LAYER_ROWS)
              _0 = torch.append(outs, self.finish(torch.slice(x, 0, begin, end), torch.slice(a, 0, begin, end), l))
            return (torch.to(torch.cat(outs), 6), torch.to(heads, 6), torch.to(k, 6), torch.to(v, 6), torch.to(a, 6))
          def store(self: __torch__.M, x: Tensor, heads: Tensor, starts: Tensor, l: int, massive: bool, CACHE_PARAMETERS) -> Tensor:
            none = (self.w)[3]
            values, rows, = self.massive_entries(x, starts, massive)
            qkv = torch.reshape(self.enter(heads), [torch.size(x, 0), (HEADS + 2 * KV_HEADS) * HEAD_DIM])
            ops.kvquant.append(qkv, starts, values, rows, LAYER_CACHE)
            return none
          def output_gram(self: __torch__.M, l: int) -> Tensor:
            w = torch.reshape(torch.to(self.wide(l * LAYER_WEIGHTS + SHARED_WEIGHTS + 7), 6), [-1, HEADS, HEAD_DIM])
            columns = torch.permute(w, [1, 2, 0])
            return torch.matmul(columns, torch.transpose(columns, 1, 2))
        """);
    }

    /**
     * Evaluation of one text: query i sees token j exactly if j is a sink or i - j is less than the
     * layer's window, else as it is read back from the cache. params describe layers without a
     * window, lengths is 0 and after is the text's length. Scores of stored tokens from biased_from
     * on have a bias if biased. layer_errors compares one layer, given its exact input, with what
     * {@link #layer} made of it: sums of squares of keys, their error, values, theirs, attention's
     * output, its error.
     */
    private String streaming() {
        return fill(
                """
          def stream_block(self: __torch__.M, q: Tensor, kq: Tensor, vq: Tensor, kx: Tensor, vx: Tensor, begin: int, end: int, window: int, bias: Tensor, biased: bool, biased_from: int) -> Tensor:
            far = ops.prim.max(0, end - window)
            near = ops.prim.max(0, begin - window + 1)
            if window == 0:
              near = end
            k = torch.cat([torch.slice(kq, 1, 0, far), torch.slice(kx, 1, near, end)], 1)
            v = torch.cat([torch.slice(vq, 1, 0, far), torch.slice(vx, 1, near, end)], 1)
            i = torch.unsqueeze(torch.arange(begin, end, DEVICE_OF(q)), 1)
            j1 = torch.unsqueeze(torch.arange(far, DEVICE_OF(q)), 0)
            j2 = torch.unsqueeze(torch.arange(near, end, DEVICE_OF(q)), 0)
            seen_far = torch.le(j1, torch.sub(i, window))
            if window > 0:
              seen_near = torch.logical_and(torch.le(j2, i), torch.lt(torch.sub(i, j2), window))
            else:
              seen_near = torch.le(j2, i)
            mask = torch.cat([seen_far, seen_near], 1)
            n = torch.size(k, 1)
            k1 = torch.expand(torch.unsqueeze(k, 1), [KV_HEADS, GROUPS, n, HEAD_DIM])
            v1 = torch.expand(torch.unsqueeze(v, 1), [KV_HEADS, GROUPS, n, HEAD_DIM])
            q1 = torch.reshape(torch.slice(q, 1, begin, end), [KV_HEADS, GROUPS, end - begin, HEAD_DIM])
            if biased:
              coded = torch.cat([torch.ge(torch.arange(far, DEVICE_OF(q)), biased_from), torch.zeros([end - near], dtype=11, DEVICE_OF(q))], 0)
              part = torch.slice(bias, 2, begin, end)
              scores = torch.where(torch.logical_and(mask, coded), torch.unsqueeze(part, -1), torch.zeros([1], DEVICE_OF(q)))
              seen = self.enter(torch.where(mask, scores, torch.mul(torch.ones([1], DEVICE_OF(q)), -1.0e30)))
            else:
              seen = mask
            o = torch.scaled_dot_product_attention(q1, k1, v1, seen, 0., False, scale=SCALE)
            return torch.reshape(torch.permute(o, [2, 0, 1, 3]), [end - begin, HEADS * HEAD_DIM])
          def stream_layer(self: __torch__.M, x: Tensor, qkv: Tensor, starts: Tensor, after: Tensor, l: int, window: int, massive: bool, biased: bool, biased_from: int, CACHE_PARAMETERS) -> Tuple[Tensor, Tensor, Tensor]:
            none = (self.w)[3]
            n = torch.size(x, 0)
            values, rows, = self.massive_entries(x, starts, massive)
            ops.kvquant.append(qkv, starts, values, rows, LAYER_CACHE)
            q, k, v, = ops.kvquant.rope_heads(qkv, starts, LAYER_CACHE)
            qr, kx, vx, = ops.kvquant.rope_heads(self.enter(torch.to(qkv, 5)), starts, LAYER_CACHE)
            kq, vq, = ops.kvquant.dequantize(0, 0, n, after, page_table, exact_table, pages[l], exact[l], rope, params[l])
            bias = none
            if biased:
              bias = torch.reshape(ops.kvquant.score_bias(q, params[l]), [KV_HEADS, GROUPS, n])
            outs = annotate(List[Tensor], [])
            for i in range((n + (QUERY_BLOCK - 1)) // QUERY_BLOCK):
              _0 = torch.append(outs, self.stream_block(q, self.enter(kq), self.enter(vq), kx, vx, i * QUERY_BLOCK, ops.prim.min(n, (i + 1) * QUERY_BLOCK), window, bias, biased, biased_from))
            return (torch.cat(outs), kq, vq)
          def streaming(self: __torch__.M, ids: Tensor, starts: Tensor, after: Tensor, windows: List[int], massive: bool, biased: bool, biased_from: int, CACHE_PARAMETERS) -> Tensor:
            x = self.enter(self.embed(ids))
            for l in range(LAYERS):
              a, kq, vq, = self.stream_layer(x, self.qkv(x, l), starts, after, l, windows[l], massive, biased, biased_from, CACHE)
              x = self.finish(x, a, l)
            return torch.to(x, 6)
          def squares(self: __torch__.M, x: Tensor) -> Tensor:
            return torch.sum(torch.square(torch.to(x, 7)))
          def layer_errors(self: __torch__.M, x: Tensor, heads: Tensor, k: Tensor, v: Tensor, a: Tensor, starts: Tensor, after: Tensor, l: int, window: int, massive: bool, biased: bool, biased_from: int, CACHE_PARAMETERS) -> Tensor:
            qkv = torch.reshape(self.enter(heads), [torch.size(x, 0), (HEADS + 2 * KV_HEADS) * HEAD_DIM])
            a1, kq, vq, = self.stream_layer(x, qkv, starts, after, l, window, massive, biased, biased_from, CACHE)
            return torch.stack([self.squares(k), self.squares(torch.sub(kq, k)), self.squares(v), self.squares(torch.sub(vq, v)), self.squares(a), self.squares(torch.sub(a1, a))])
          def compare(self: __torch__.M, x: List[Tensor], targets: Tensor) -> Tensor:
            n = torch.size(targets, 0)
            sums = torch.zeros([torch.len(x), 3], dtype=7, DEVICE_OF(targets))
            for i in range((n + (QUERY_BLOCK - 1)) // QUERY_BLOCK):
              begin = i * QUERY_BLOCK
              end = ops.prim.min(n, begin + QUERY_BLOCK)
              t = torch.unsqueeze(torch.slice(targets, 0, begin, end), 1)
              r = torch.log_softmax(self.logits(torch.slice(x[0], 0, begin, end)), -1)
              rows = annotate(List[Tensor], [])
              for j in range(torch.len(x)):
                if j > 0:
                  p = torch.log_softmax(self.logits(torch.slice(x[j], 0, begin, end)), -1)
                else:
                  p = r
                nll = torch.neg(torch.sum(torch.to(torch.gather(p, 1, t), 7)))
                kl = torch.sum(torch.to(torch.mul(torch.exp(r), torch.sub(r, p)), 7))
                same = torch.sum(torch.to(torch.eq(torch.argmax(p, -1), torch.argmax(r, -1)), 7))
                _0 = torch.append(rows, torch.stack([nll, kl, same]))
              sums = torch.add(sums, torch.stack(rows))
            return sums
        """);
    }

    private String fill(String text) {
        int heads = config.numHeads();
        int kvHeads = config.numKvHeads();
        return text.replace("CACHE_PARAMETERS", CACHE_PARAMETERS)
                .replace("DEVICE_OF", "device=ops.prim.device")
                .replace("LAYER_CACHE", LAYER_CACHE)
                .replace("LAYER_ROWS", Integer.toString(LAYER_ROWS))
                .replace("LAYER_WEIGHTS", Integer.toString(LAYER_WEIGHTS))
                .replace("SHARED_WEIGHTS", Integer.toString(SHARED_WEIGHTS))
                .replace("PAST_SEGMENT", Integer.toString(PAST_SEGMENT))
                .replace("QUERY_BLOCK", Integer.toString(QUERY_BLOCK))
                .replace("FEW_ROWS", Integer.toString(FEW_ROWS))
                .replace("LAYERS", Integer.toString(config.numLayers()))
                .replace("KV_HEADS", Integer.toString(kvHeads))
                .replace("GROUPS", Integer.toString(heads / kvHeads))
                .replace("HEADS", Integer.toString(heads))
                .replace("HEAD_DIM", Integer.toString(config.headDim()))
                .replace("HIDDEN", Integer.toString(config.hiddenSize()))
                .replace("SCALE", Double.toString(scoreScale(config)))
                .replace("EPS", Double.toString(config.rmsNormEps()))
                .replace("CACHE", CACHE);
    }

    /**
     * 1 / sqrt(headDim), times the square of RoPE's attention factor, which belongs to q and to k.
     */
    static double scoreScale(LlamaConfig config) {
        double factor = config.rope().attentionFactor();
        return factor * factor / Math.sqrt(config.headDim());
    }
}
