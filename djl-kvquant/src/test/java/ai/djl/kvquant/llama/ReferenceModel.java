/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.ndarray.types.DataType;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;

/** LLaMA as its definition says, in double precision, for small checkpoints of F32 and F16. */
final class ReferenceModel {

    private final LlamaConfig config;
    private final Map<String, double[]> weights = new HashMap<>();

    /** Something added to one element of a layer's keys before RoPE, or of its values. */
    record Change(int layer, boolean ofKeys, int token, int channel, double amount) {

        static final Change NONE = new Change(-1, false, 0, 0, 0);

        void apply(int at, boolean keys, double[][] x) {
            if (at == layer && keys == ofKeys) {
                x[token][channel] += amount;
            }
        }
    }

    ReferenceModel(Path directory) throws Exception {
        config = LlamaConfig.load(directory);
        Checkpoint checkpoint = Checkpoint.open(directory, config);
        for (String name : checkpoint.names()) {
            weights.put(name, read(checkpoint, name));
        }
    }

    private static double[] read(Checkpoint checkpoint, String name) throws IOException {
        DataType type = checkpoint.entry(name).dtype();
        ByteBuffer bytes = checkpoint.bytes(name).order(ByteOrder.LITTLE_ENDIAN);
        double[] values = new double[bytes.remaining() / type.getNumOfBytes()];
        for (int i = 0; i < values.length; ++i) {
            values[i] =
                    type == DataType.FLOAT32 ? bytes.getFloat(4 * i) : half(bytes.getShort(2 * i));
        }
        return values;
    }

    private static double half(short bits) {
        int exponent = bits >> 10 & 31;
        int fraction = bits & 1023;
        double value =
                exponent == 0
                        ? Math.scalb(fraction, -24)
                        : Math.scalb(1024.0 + fraction, exponent - 25);
        return bits < 0 ? -value : value;
    }

    LlamaConfig config() {
        return config;
    }

    /** The mean cross-entropy of the tokens that follow. */
    double loss(int[] tokens, Change change) {
        double[] embedding = weights.get("model.embed_tokens.weight");
        int hidden = config.hiddenSize();
        double[][] x = new double[tokens.length][hidden];
        for (int t = 0; t < x.length; ++t) {
            for (int i = 0; i < hidden; ++i) {
                x[t][i] = embedding[tokens[t] * hidden + i];
            }
        }
        for (int layer = 0; layer < config.numLayers(); ++layer) {
            attend(x, layer, change);
            feedForward(x, "model.layers." + layer + ".");
        }
        double[][] normed = norm(x, "model.norm.weight");
        String head = config.tieWordEmbeddings() ? "model.embed_tokens" : "lm_head";
        double[][] logits = linear(normed, head);
        double sum = 0;
        for (int t = 0; t + 1 < tokens.length; ++t) {
            double total = 0;
            for (double logit : logits[t]) {
                total += Math.exp(logit - logits[t][tokens[t + 1]]);
            }
            sum += Math.log(total);
        }
        return sum / (tokens.length - 1);
    }

    private void attend(double[][] x, int layer, Change change) {
        String name = "model.layers." + layer + ".";
        double[][] h = norm(x, name + "input_layernorm.weight");
        double[][] q = linear(h, name + "self_attn.q_proj");
        double[][] k = linear(h, name + "self_attn.k_proj");
        double[][] v = linear(h, name + "self_attn.v_proj");
        change.apply(layer, true, k);
        change.apply(layer, false, v);
        rope(q);
        rope(k);
        int size = config.headDim();
        double[][] out = new double[x.length][q[0].length];
        for (int head = 0; head < config.numHeads(); ++head) {
            int from = head * size;
            int kvFrom = head / config.queryGroups() * size;
            for (int t = 0; t < x.length; ++t) {
                double[] weight = new double[t + 1];
                double total = 0;
                for (int j = 0; j <= t; ++j) {
                    double score = 0;
                    for (int i = 0; i < size; ++i) {
                        score += q[t][from + i] * k[j][kvFrom + i];
                    }
                    weight[j] = Math.exp(score * LlamaCode.scoreScale(config));
                    total += weight[j];
                }
                for (int j = 0; j <= t; ++j) {
                    for (int i = 0; i < size; ++i) {
                        out[t][from + i] += weight[j] / total * v[j][kvFrom + i];
                    }
                }
            }
        }
        add(x, linear(out, name + "self_attn.o_proj"));
    }

    private void feedForward(double[][] x, String name) {
        double[][] h = norm(x, name + "post_attention_layernorm.weight");
        double[][] gate = linear(h, name + "mlp.gate_proj");
        double[][] up = linear(h, name + "mlp.up_proj");
        for (int t = 0; t < x.length; ++t) {
            for (int i = 0; i < up[t].length; ++i) {
                up[t][i] *= gate[t][i] / (1 + Math.exp(-gate[t][i]));
            }
        }
        add(x, linear(up, name + "mlp.down_proj"));
    }

    private void rope(double[][] x) {
        double[] frequencies = config.rope().inverseFrequencies();
        int size = config.headDim();
        int half = size / 2;
        for (int t = 0; t < x.length; ++t) {
            for (int c = 0; c < x[t].length; ++c) {
                if (c % size < half) {
                    double angle = t * frequencies[c % size];
                    double a = x[t][c];
                    double b = x[t][c + half];
                    x[t][c] = a * Math.cos(angle) - b * Math.sin(angle);
                    x[t][c + half] = b * Math.cos(angle) + a * Math.sin(angle);
                }
            }
        }
    }

    private double[][] norm(double[][] x, String name) {
        double[] weight = weights.get(name);
        double[][] y = new double[x.length][weight.length];
        for (int t = 0; t < x.length; ++t) {
            double square = 0;
            for (double value : x[t]) {
                square += value * value / x[t].length;
            }
            for (int i = 0; i < weight.length; ++i) {
                y[t][i] = x[t][i] * weight[i] / Math.sqrt(square + config.rmsNormEps());
            }
        }
        return y;
    }

    private double[][] linear(double[][] x, String name) {
        double[] weight = weights.get(name + ".weight");
        double[] bias = weights.get(name + ".bias");
        int in = x[0].length;
        double[][] y = new double[x.length][weight.length / in];
        for (int t = 0; t < x.length; ++t) {
            for (int o = 0; o < y[t].length; ++o) {
                double sum = bias == null ? 0 : bias[o];
                for (int i = 0; i < in; ++i) {
                    sum += weight[o * in + i] * x[t][i];
                }
                y[t][o] = sum;
            }
        }
        return y;
    }

    private static void add(double[][] x, double[][] y) {
        for (int t = 0; t < x.length; ++t) {
            for (int i = 0; i < x[t].length; ++i) {
                x[t][i] += y[t][i];
            }
        }
    }
}
