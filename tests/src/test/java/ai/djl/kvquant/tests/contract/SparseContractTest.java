/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.torch.Operators.Variant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Decoding with kv_sparse_tokens: which pages are read, and that attention is over these only. */
class SparseContractTest {

    private static final int PAGE = 64;
    private static final int PROMPT = 900;
    private static final int HEADS = 6;
    private static final int KV_HEADS = 3;
    private static final int HEAD_DIM = Sequences.HEAD_DIM;
    private static final double SCALE = 0.125;

    /** Shares of pages that are closer than this may be ordered either way. */
    private static final double TIE = 1e-3;

    @AfterEach
    void restoreVariant() {
        Kernels.OPERATORS.useVariant(Kernels.OPERATORS.bestVariant());
    }

    /** Method, first sinks, window, kv heads whose keys are read together. */
    private static Map<String, String> options(String settings, int sparse) {
        String[] parts = settings.split(" ");
        Map<String, String> options = new HashMap<>();
        options.put("kv_cache_dtype", parts[0]);
        options.put("kv_sink_tokens", parts[1]);
        options.put("kv_recent_tokens", parts[2]);
        options.put("kv_cache_tokens", "4000");
        if (sparse > 0) {
            options.put("kv_sparse_tokens", Integer.toString(sparse));
        }
        return options;
    }

    @ParameterizedTest
    @ValueSource(
            strings = {"svdq2.25/fp16 4 0", "int2 4 33", "rotatekv4 70 0", "latent2/auto 0 128"})
    void asManyTokensAsThereAreIsTheSameBitForBit(String settings) {
        for (Variant variant : Kernels.variants()) {
            Kernels.OPERATORS.useVariant(variant);
            float[] dense = lastOf(settings, 0);
            assertArrayEquals(dense, lastOf(settings, PROMPT + 5));
            assertArrayEquals(dense, lastOf(settings, PROMPT - 2 * PAGE));
            assertTrue(!Arrays.equals(dense, lastOf(settings, PAGE)), "nothing was left out");
        }
    }

    private static float[] lastOf(String settings, int sparse) {
        try (Sequences on = new Sequences(options(settings, sparse));
                CacheSequence sequence = on.cache.newSequence()) {
            on.prefill(sequence, Sequences.tokens(1, 0, PROMPT));
            return on.decodeAll(sequence, Sequences.tokens(2, 0, 5));
        }
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "svdq2.25/fp16 4 0 3",
                "rotatekv4/int4 70 0 3",
                "rotatekv3 0 20 3",
                "latent2/auto 4 128 1",
                "int2 4 33 1"
            })
    void theBestPagesAreRead(String settings) {
        int together = Integer.parseInt(settings.split(" ")[3]);
        int compared = 0;
        for (int sparse : new int[] {1, 3 * PAGE, 5 * PAGE + 1}) {
            for (Variant variant : Kernels.variants()) {
                Kernels.OPERATORS.useVariant(variant);
                try (Sequences on = new Sequences(options(settings, sparse));
                        CacheSequence sequence = on.cache.newSequence()) {
                    on.prefill(sequence, Sequences.tokens(1, 0, 500));
                    on.prefill(sequence, Sequences.tokens(1, 500, PROMPT));
                    for (int token : Sequences.tokens(3, 0, 80)) {
                        float[] actual = on.decode(List.of(sequence), token)[0];
                        if (sequence.length() % 9 == 0) {
                            Definition expected = new Definition(on, sequence, token, settings);
                            compared += expected.compare(actual, sparse, together) ? 1 : 0;
                        }
                    }
                }
            }
        }
        assertTrue(compared > 20, compared + " steps had no ties");
    }

    /** A step in double precision, from the keys and values that the cache reads back. */
    private static final class Definition {

        private final double[] q;
        private final float[][] kv;
        private final Side keys;
        private final int length;
        private final int sinks;
        private final int stored;

        Definition(Sequences on, CacheSequence sequence, int token, String settings) {
            String[] parts = settings.split(" ");
            length = sequence.length();
            q = on.queries(token, length - 1);
            kv = on.read(sequence);
            keys = Sequences.staticKeys(options(settings, 0));
            sinks = Integer.parseInt(parts[1]);
            stored = length - Integer.parseInt(parts[2]);
        }

        /** False where pages are too close to be told apart. */
        boolean compare(float[] actual, int sparse, int together) {
            for (int first = 0; first < KV_HEADS; first += together) {
                BitSet pages = pages(first, together, (sparse + PAGE - 1) / PAGE);
                if (pages == null) {
                    return false;
                }
                int perHead = HEADS / KV_HEADS;
                for (int h = first * perHead; h < (first + together) * perHead; ++h) {
                    double[] expected = attention(h, pages);
                    float[] row = Arrays.copyOfRange(actual, h * HEAD_DIM, (h + 1) * HEAD_DIM);
                    double largest = Arrays.stream(expected).map(Math::abs).max().orElseThrow();
                    for (int c = 0; c < HEAD_DIM; ++c) {
                        String what = "token " + length + " head " + h + " channel " + c;
                        assertEquals(expected[c], row[c], 1e-3 * largest, what);
                    }
                }
            }
            return true;
        }

        private double key(int kvHead, int token, int c) {
            return kv[0][(kvHead * length + token) * HEAD_DIM + c];
        }

        private double dot(int head, double[] k) {
            double sum = 0;
            for (int c = 0; c < HEAD_DIM; ++c) {
                sum += SCALE * q[head * HEAD_DIM + c] * k[c];
            }
            return sum;
        }

        private double[] landmark(int kvHead, int page) {
            double[] mean = new double[HEAD_DIM];
            List<Integer> tokens = new ArrayList<>();
            IntStream.range(Math.max(sinks, page * PAGE), (page + 1) * PAGE).forEach(tokens::add);
            for (int c = 0; c < HEAD_DIM; ++c) {
                for (int token : tokens) {
                    mean[c] += key(kvHead, token, c) / tokens.size();
                }
                int bits = Float.floatToIntBits((float) mean[c]);
                bits = (bits + 0x7fff + (bits >>> 16 & 1)) & 0xffff0000;
                mean[c] = Float.intBitsToFloat(bits);
            }
            return mean;
        }

        /** Of a softmax over landmarks, the largest share among the queries of some kv heads. */
        private double[] worth(int first, int together, int candidates) {
            double[] worth = new double[candidates];
            int perHead = HEADS / KV_HEADS;
            for (int h = first * perHead; h < (first + together) * perHead; ++h) {
                double[] shares = new double[candidates];
                for (int page = 0; page < candidates; ++page) {
                    shares[page] = Math.exp(dot(h, landmark(h / perHead, page)));
                }
                double total = Arrays.stream(shares).sum();
                for (int page = 0; page < candidates; ++page) {
                    worth[page] = Math.max(worth[page], shares[page] / total);
                }
            }
            return worth;
        }

        private BitSet pages(int first, int together, int wanted) {
            int candidates = Math.max(0, stored - PAGE) / PAGE;
            BitSet pages = new BitSet();
            pages.set(candidates, length / PAGE + 1);
            double[] worth = worth(first, together, candidates);
            int[] best =
                    IntStream.range(0, candidates)
                            .boxed()
                            .sorted((i, j) -> Double.compare(worth[j], worth[i]))
                            .mapToInt(i -> i)
                            .toArray();
            if (wanted < candidates && worth[best[wanted - 1]] < (1 + TIE) * worth[best[wanted]]) {
                return null;
            }
            Arrays.stream(best).limit(wanted).forEach(pages::set);
            return pages;
        }

        private double[] attention(int head, BitSet pages) {
            int kvHead = head / (HEADS / KV_HEADS);
            double total = 0;
            double[] out = new double[HEAD_DIM];
            for (int token = 0; token < length; ++token) {
                boolean coded = token >= sinks && token < stored;
                if (coded && !pages.get(token / PAGE)) {
                    continue;
                }
                double[] k = new double[HEAD_DIM];
                for (int c = 0; c < HEAD_DIM; ++c) {
                    k[c] = key(kvHead, token, c);
                }
                double score = dot(head, k);
                if (coded && keys != null) {
                    score += keys.codes().bias(q, head * HEAD_DIM, kvHead, HEAD_DIM, SCALE);
                }
                double weight = Math.exp(score);
                total += weight;
                for (int c = 0; c < HEAD_DIM; ++c) {
                    out[c] += weight * kv[1][(kvHead * length + token) * HEAD_DIM + c];
                }
            }
            for (int c = 0; c < HEAD_DIM; ++c) {
                out[c] /= total;
            }
            return out;
        }
    }
}
