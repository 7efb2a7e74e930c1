/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.util.BitSet;
import java.util.Random;

/**
 * What sampling remembers of one sequence: its random numbers and the tokens seen.
 *
 * <p>Each sequence has a stream of its own, so that its text does not depend on what else is in the
 * batch.
 */
final class SamplerState {

    private final Random random;
    private final BitSet seen;

    /**
     * Creates the state at the start of a sequence.
     *
     * @param config the settings
     * @param seed the seed of the generation
     * @param copy how many earlier prompts of the batch equal this one, so that copies of a prompt
     *     get different texts
     * @param prompt the prompt, which the repetition penalty counts
     */
    SamplerState(GenerationConfig config, long seed, int copy, int[] prompt) {
        random = config.isSampling() ? new Random(mix(seed + copy * 0x9E3779B97F4A7C15L)) : null;
        seen = config.getRepetitionPenalty() == 1 ? null : new BitSet();
        if (seen != null) {
            for (int token : prompt) {
                seen.set(token);
            }
        }
    }

    double nextDouble() {
        return random.nextDouble();
    }

    void add(int token) {
        if (seen != null) {
            seen.set(token);
        }
    }

    void penalize(float[] scores, float penalty) {
        if (seen == null) {
            return;
        }
        for (int i = seen.nextSetBit(0); i >= 0 && i < scores.length; i = seen.nextSetBit(i + 1)) {
            scores[i] = scores[i] < 0 ? scores[i] * penalty : scores[i] / penalty;
        }
    }

    /** Spreads close seeds over all 64 bits (the finalizer of SplitMix64). */
    private static long mix(long seed) {
        long z = (seed ^ (seed >>> 30)) * 0xBF58476D1CE4E5B9L;
        z = (z ^ (z >>> 27)) * 0x94D049BB133111EBL;
        return z ^ (z >>> 31);
    }
}
