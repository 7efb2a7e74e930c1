/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.util.ArrayList;
import java.util.List;

/**
 * Chooses tokens from rows of logits.
 *
 * <p>The steps and their order are those of HuggingFace transformers: repetition penalty,
 * temperature, top-k, top-p, min-p, then a draw from the softmax of what is left; or, when decoding
 * is greedy, the largest logit after the repetition penalty (of equal ones the smallest id). One
 * sampler serves all rows of a batch; what belongs to one sequence is in its {@link SamplerState}.
 * Buffers of the vocabulary's size are made once.
 *
 * <p>Not thread-safe.
 */
final class Sampler {

    private final GenerationConfig config;
    private final float[] scores;
    private final int[] heap;
    private final double[] weights;
    private int heapSize;

    Sampler(GenerationConfig config, int vocabularySize) {
        this.config = config;
        scores = new float[vocabularySize];
        boolean filters = config.isSampling() && (config.getTopK() > 0 || config.getTopP() < 1);
        heap = new int[filters ? vocabularySize : 0];
        weights = new double[config.isSampling() ? vocabularySize : 0];
    }

    /**
     * Chooses the next token of a sequence and records it in the sequence's state.
     *
     * @param logits the row of raw logits, one per token of the vocabulary; not changed
     * @param state the sequence
     * @return the token id
     */
    int sample(float[] logits, SamplerState state) {
        System.arraycopy(logits, 0, scores, 0, scores.length);
        state.penalize(scores, config.getRepetitionPenalty());
        int best = argMax(scores);
        int token = config.isSampling() ? draw(best, state) : best;
        state.add(token);
        return token;
    }

    private int draw(int best, SamplerState state) {
        return heap.length == 0
                ? drawFromAll(scores[best], state)
                : drawFromLargest(scores[best], state);
    }

    /** Draws in the order of the ids, which needs no sorting. */
    private int drawFromAll(float max, SamplerState state) {
        double total = 0;
        for (int i = 0; i < scores.length; i++) {
            double weight = weight(scores[i], max);
            weights[i] = weight < config.getMinP() ? 0 : weight;
            total += weights[i];
        }
        return pick(scores.length, total, state);
    }

    /** Takes tokens from the largest down until top-k, top-p or min-p ends the list, then draws. */
    private int drawFromLargest(float max, SamplerState state) {
        int kept = takeLargest(max);
        double total = 0;
        for (int i = 0; i < kept; i++) {
            total += weights[i];
        }
        return heap[heap.length - 1 - pick(kept, total, state)];
    }

    /**
     * Sorts the tokens that remain to the end of the heap's array, the largest last, and their
     * weights, relative to the largest, to the front of {@code weights}.
     */
    private int takeLargest(float max) {
        heapify();
        double sumOfAll = config.getTopK() > 0 ? 0 : sumOfWeights(max);
        int count = 0;
        float last = max;
        double above = 0;
        while (heapSize > 0) {
            float score = scores[heap[0]];
            boolean beyondK = config.getTopK() > 0 && count >= config.getTopK() && score < last;
            boolean beyondP = config.getTopK() == 0 && above >= config.getTopP() * sumOfAll;
            if (score == Float.NEGATIVE_INFINITY || beyondK || (beyondP && count > 0)) {
                break;
            }
            weights[count] = weight(score, max);
            above += weights[count++];
            last = score;
            popToEnd();
        }
        return restrict(config.getTopK() > 0 ? cutAtTopP(count, above) : count);
    }

    /** Applies top-p to the tokens that top-k left. */
    private int cutAtTopP(int count, double total) {
        double above = 0;
        int kept = 0;
        while (kept < count && (kept == 0 || above < config.getTopP() * total)) {
            above += weights[kept++];
        }
        return kept;
    }

    /** Applies min-p; the weights are relative to the largest already. */
    private int restrict(int count) {
        int kept = count;
        while (kept > 1 && weights[kept - 1] < config.getMinP()) {
            kept--;
        }
        return kept;
    }

    private double sumOfWeights(float max) {
        double sum = 0;
        for (float score : scores) {
            sum += weight(score, max);
        }
        return sum;
    }

    /** Returns a token's probability after temperature, relative to the most probable token. */
    private double weight(float score, float max) {
        return Math.exp(((double) score - max) / config.getTemperature());
    }

    private int pick(int count, double total, SamplerState state) {
        double rest = state.nextDouble() * total;
        int last = 0;
        for (int i = 0; i < count; i++) {
            if (weights[i] > 0) {
                rest -= weights[i];
                last = i;
                if (rest < 0) {
                    return i;
                }
            }
        }
        return last; // rounding left a little more than nothing
    }

    private void heapify() {
        heapSize = heap.length;
        for (int i = 0; i < heapSize; i++) {
            heap[i] = i;
        }
        for (int i = heapSize / 2 - 1; i >= 0; i--) {
            siftDown(i);
        }
    }

    private void popToEnd() {
        int top = heap[0];
        heap[0] = heap[--heapSize];
        siftDown(0);
        heap[heapSize] = top;
    }

    private void siftDown(int start) {
        int parent = start;
        while (2 * parent + 1 < heapSize) {
            int child = 2 * parent + 1;
            if (child + 1 < heapSize && before(heap[child + 1], heap[child])) {
                child++;
            }
            if (!before(heap[child], heap[parent])) {
                return;
            }
            int token = heap[parent];
            heap[parent] = heap[child];
            heap[child] = token;
            parent = child;
        }
    }

    private boolean before(int a, int b) {
        return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    }

    private static int argMax(float[] values) {
        int best = -1;
        float max = Float.NEGATIVE_INFINITY;
        for (int i = 0; i < values.length; i++) {
            if (values[i] > max) {
                max = values[i];
                best = i;
            } else if (Float.isNaN(values[i])) {
                throw new IllegalStateException(
                        "The model gave NaN as the logit of token " + i + "; try dtype=fp32.");
            }
        }
        if (best < 0 || max == Float.POSITIVE_INFINITY) {
            throw new IllegalStateException(
                    "The model gave no finite largest logit; try dtype=fp32.");
        }
        return best;
    }

    /** Returns the log-softmax of raw logits at one token. */
    static float logProb(float[] logits, int token) {
        return (float) (logits[token] - logSumExp(logits));
    }

    /** Returns the most probable tokens of raw logits, best first. */
    static List<TokenLogProb> topLogProbs(float[] logits, int count) {
        List<Integer> top = new ArrayList<>();
        for (int i = 0; i < logits.length; i++) {
            boolean full = top.size() == Math.min(count, logits.length);
            if (full && (top.isEmpty() || logits[i] <= logits[top.get(top.size() - 1)])) {
                continue;
            }
            int place = top.size();
            while (place > 0 && logits[i] > logits[top.get(place - 1)]) {
                place--;
            }
            top.add(place, i);
            if (full) {
                top.remove(top.size() - 1);
            }
        }
        double norm = logSumExp(logits);
        return top.stream().map(i -> new TokenLogProb(i, (float) (logits[i] - norm))).toList();
    }

    private static double logSumExp(float[] logits) {
        double max = Double.NEGATIVE_INFINITY;
        for (float logit : logits) {
            max = Math.max(max, logit);
        }
        double sum = 0;
        for (float logit : logits) {
            sum += Math.exp(logit - max);
        }
        return max + Math.log(sum);
    }
}
