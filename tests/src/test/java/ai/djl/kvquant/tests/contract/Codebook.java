/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;
import java.util.Random;

/**
 * KVQuant's codes: x is stored as the level nearest to (x - start) / step, the lower one of two,
 * and read as start + step * read level; outliers are stored as they are.
 *
 * @param steps of keys: [channels, {start, step}]; null: of each token
 * @param levels what codes are chosen by, ascending
 * @param readLevels what codes stand for, ascending
 * @param outliers slots of a token
 */
record Codebook(float[] steps, float[] levels, float[] readLevels, int outliers) {

    /** The channel of an empty slot. */
    static final int EMPTY = 0xffff;

    /** Slots by the case's widths; -1: half of the channels. */
    private static final int[] OUTLIERS = {3, 0, 1, 2, 5, -1};

    private static final int FIRST_FIELD = 28;

    /** Ranges that about a tenth of normal keys lie outside of. */
    static Codebook keys(int bits, Case point) {
        Random random = new Random(point.seed());
        float[] steps = new float[2 * point.kvHeads() * point.headDim()];
        for (int i = 0; i < steps.length; i += 2) {
            steps[i] = (float) (0.3 * random.nextGaussian());
            steps[i + 1] = (float) (1.2 + 1.3 * random.nextDouble());
        }
        return of(steps, bits, point, random);
    }

    static Codebook values(int bits, Case point) {
        return of(null, bits, point, new Random(point.seed() + 1));
    }

    private static Codebook of(float[] steps, int bits, Case point, Random random) {
        float[] levels = new float[1 << bits];
        float[] read = new float[levels.length];
        double sum = 0;
        for (int i = 0; i < levels.length; ++i) {
            sum += 0.3 + random.nextDouble();
            levels[i] = (float) sum;
        }
        for (int i = 0; i < levels.length; ++i) {
            levels[i] = (float) (2 * levels[i] / sum - 1.05);
            read[i] = point.seed() % 3 == 0 ? levels[i] : 1.1f * levels[i] + 0.03f;
        }
        int slots = OUTLIERS[point.widths()];
        int channels = point.kvHeads() * point.headDim();
        return new Codebook(steps, levels, read, slots < 0 ? channels / 2 : slots);
    }

    Codebook withSteps(float... newSteps) {
        return new Codebook(newSteps, levels, readLevels, outliers);
    }

    Codebook withLevels(float[] newLevels, float[] newReadLevels) {
        return new Codebook(steps, newLevels, newReadLevels, outliers);
    }

    Codebook withOutliers(int slots) {
        return new Codebook(steps, levels, readLevels, slots);
    }

    int bits() {
        return Integer.numberOfTrailingZeros(levels.length);
    }

    double start(int channel) {
        return steps[2 * channel];
    }

    double step(int channel) {
        return steps[2 * channel + 1];
    }

    double largestReadLevel() {
        return Math.max(Math.abs(readLevels[0]), Math.abs(readLevels[readLevels.length - 1]));
    }

    /** Between a code's level and the one below. */
    double middle(int code) {
        return 0.5 * ((double) levels[code - 1] + levels[code]);
    }

    /** The fields of SideParams from mean_offset on. */
    void write(ByteBuffer out, Tables tables) {
        out.putInt(0).putInt(tables.add(steps));
        out.putInt(tables.add(Scenario.concat(levels, readLevels)));
        out.putInt(0).putInt(0).putInt(0).putInt(0).putInt(0).putInt(outliers);
        out.put(new byte[Side.HEADER_BYTES - FIRST_FIELD - 9 * Integer.BYTES]);
    }
}
