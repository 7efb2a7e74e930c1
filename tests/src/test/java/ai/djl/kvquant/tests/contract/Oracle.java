/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;
import java.util.Map;

/**
 * Attention by its definition, in double precision, over a cache as it is stored: softmax(scale q
 * K') V, where each token is read from where cache.h says it is. Subclasses leave a step out to
 * prove that the tests would notice.
 */
class Oracle {

    /**
     * A token as attention sees it: k after RoPE, v, natural basis, [channels] each; how large the
     * terms of v are, [kv heads].
     */
    record Token(double[] k, double[] v, double[] reach, boolean coded) {}

    /**
     * Attention of one token.
     *
     * @param output [heads, headDim]
     * @param magnitude sum of p |v|, as output
     * @param largestScore the largest |score|
     */
    record Attention(double[] output, double[] magnitude, double largestScore) {}

    final CacheState state;
    final Layer layer;
    private final PageFormat keys;
    private final PageFormat values;
    private final Rotation keyRotation;
    private final Rotation valueRotation;

    Oracle(CacheState state) {
        this(state, state.layer);
    }

    /** With another layer's definition. */
    Oracle(CacheState state, Layer layer) {
        this.state = state;
        this.layer = layer;
        keys = PageFormat.keys(layer);
        values = PageFormat.values(layer);
        keyRotation = rotation(layer.keys());
        valueRotation = rotation(layer.values());
    }

    Rotation rotation(Side side) {
        return Rotation.of(layer.headDim(), side.rotationHeads());
    }

    double[] stored(PageFormat format, ByteBuffer page, int slot) {
        return format.read(page, slot);
    }

    /** The position at which RoPE turns a stored key. */
    int position(int token) {
        return token;
    }

    Map<Integer, Integer> sinks(int b, int length) {
        return ExactFormat.sinks(state, b, length);
    }

    /** A token of a sequence of the given length. */
    final Token read(int b, int token, int length, Map<Integer, Integer> sinks) {
        Integer place = sinks.get(token);
        if (place == null && token >= state.quantized(b, length)) {
            int column = layer.sinkPages() + token / 16 % state.ring();
            place = 16 * column + token % 16;
        }
        if (place != null) {
            ByteBuffer page = state.exactPage(b, place / 16);
            double[] k = ExactFormat.keys(layer, page, place % 16);
            state.rope.turn(k, position(token));
            double[] v = ExactFormat.values(layer, page, place % 16);
            return new Token(k, v, new double[layer.kvHeads()], false);
        }
        ByteBuffer page = state.page(b, token);
        double[] k = naturalKey(stored(keys, page, token % 64), token);
        double[] v = valueRotation.apply(stored(values, page, token % 64));
        return new Token(k, v, values.reach(page, token % 64), true);
    }

    /** A key from the basis in which it is stored, at its position. */
    private double[] naturalKey(double[] stored, int token) {
        StaticCodes codes = layer.keys().codes();
        if (codes == null) {
            double[] k = keyRotation.apply(stored);
            if (layer.preRope()) {
                state.rope.turn(k, position(token));
            }
            return k;
        }
        double[] k = codes.fromPlaces(stored, layer.keys().order());
        double[] mean = codes.exactMean();
        if (layer.preRope()) {
            add(mean, k);
            state.rope.turn(k, position(token));
        } else {
            turnMean(mean, token);
            add(mean, k);
        }
        return k;
    }

    /** Turns the mean of keys that are stored after RoPE, as the keys were turned. */
    void turnMean(double[] mean, int token) {
        state.rope.turn(mean, position(token));
    }

    private static void add(double[] x, double[] to) {
        for (int c = 0; c < to.length; ++c) {
            to[c] += x[c];
        }
    }

    /**
     * Attention of the token at position length - 1, with queries [heads, headDim] before RoPE at
     * offset in qkv.
     */
    final Attention attend(int b, int length, float[] qkv, int offset) {
        int headDim = layer.headDim();
        double[] q = new double[layer.heads() * headDim];
        for (int i = 0; i < q.length; ++i) {
            q[i] = qkv[offset + i];
        }
        state.rope.turn(q, length - 1);
        Token[] tokens = new Token[length];
        double[][] scores = new double[layer.heads()][length];
        double[] bias = bias(q);
        Map<Integer, Integer> sinks = sinks(b, length);
        for (int t = 0; t < length; ++t) {
            Token token = read(b, t, length, sinks);
            tokens[t] = token;
            for (int h = 0; h < layer.heads(); ++h) {
                int kv = h / layer.perHead() * headDim;
                double dot = 0;
                for (int i = 0; i < headDim; ++i) {
                    dot += q[h * headDim + i] * token.k[kv + i];
                }
                scores[h][t] = dot * layer.scale();
                if (token.coded) {
                    scores[h][t] += bias[h];
                }
            }
        }
        return weigh(scores, tokens);
    }

    /** What is added to the scores of tokens that are read from codes, [heads]. */
    private double[] bias(double[] q) {
        double[] bias = new double[layer.heads()];
        StaticCodes codes = layer.keys().codes();
        for (int h = 0; codes != null && h < bias.length; ++h) {
            int offset = h * layer.headDim();
            bias[h] = codes.bias(q, offset, h / layer.perHead(), layer.headDim(), layer.scale());
        }
        return bias;
    }

    private Attention weigh(double[][] scores, Token[] tokens) {
        int headDim = layer.headDim();
        double[] output = new double[layer.heads() * headDim];
        double[] magnitude = new double[output.length];
        double largest = 0;
        for (int h = 0; h < layer.heads(); ++h) {
            double maximum = Double.NEGATIVE_INFINITY;
            for (double score : scores[h]) {
                maximum = Math.max(maximum, score);
                largest = Math.max(largest, Math.abs(score));
            }
            double total = 0;
            for (double score : scores[h]) {
                total += Math.exp(score - maximum);
            }
            int kv = h / layer.perHead() * headDim;
            for (int t = 0; t < tokens.length; ++t) {
                double p = Math.exp(scores[h][t] - maximum) / total;
                double reach = tokens[t].reach[h / layer.perHead()];
                for (int i = 0; i < headDim; ++i) {
                    double value = tokens[t].v[kv + i];
                    output[h * headDim + i] += p * value;
                    magnitude[h * headDim + i] += p * Math.max(reach, Math.abs(value));
                }
            }
        }
        return new Attention(output, magnitude, largest);
    }
}
