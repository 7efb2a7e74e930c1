/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;
import java.util.Random;

/**
 * What is static about keys: a mean, a start and a step for each place, and widths of runs of
 * places.
 *
 * @param mean [channels], subtracted before anything else
 * @param steps [channels, {start, step}], by place
 * @param widths bits of the codes of each run of headDim / 16 places, the same for all heads
 * @param basis what makes places of channels; null: the order alone
 * @param noise variance of errors of each channel after RoPE, [channels]; null: none
 * @param waves WaveTable; null: none
 */
record StaticCodes(
        float[] mean, float[] steps, int[] widths, Basis basis, float[] noise, float[] waves) {

    static final int RUNS = 16;

    /** Schedules of widths: regular, one width only, and as irregular as the format allows. */
    static final int[][] WIDTHS = {
        {8, 4, 4, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0},
        {4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1},
        {8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8},
        {0, 1, 8, 0, 2, 2, 4, 0, 0, 1, 3, 3, 8, 4, 1, 0},
        {2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2},
        {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
    };

    /** Codes for residuals of about unit variance. */
    static StaticCodes random(
            int channels, int headDim, int[] widths, Basis basis, float[] waves, long seed) {
        Random random = new Random(seed);
        float[] mean = new float[channels];
        float[] steps = new float[2 * channels];
        for (int place = 0; place < channels; ++place) {
            boolean large = random.nextInt(8) == 0;
            mean[place] = (float) ((large ? 8 : 1.5) * random.nextGaussian());
            int width = widths[place % headDim / (headDim / RUNS)];
            double reach = 1 + 1.5 * random.nextDouble();
            double start = 0.3 * random.nextGaussian() - reach;
            double step = 2 * reach / ((1 << width) - 1);
            // Where there are no codes, these must not matter.
            steps[2 * place] = width == 0 ? Float.NaN : (float) start;
            steps[2 * place + 1] = width == 0 ? Float.NaN : (float) step;
        }
        float[] noise = seed % 3 == 0 ? null : new float[channels];
        for (int c = 0; noise != null && c < channels; ++c) {
            noise[c] = 0.05f * random.nextFloat();
        }
        return new StaticCodes(mean, steps, widths, basis, noise, waves);
    }

    /** The same variance for both channels of a pair: what relative positions can not change. */
    StaticCodes withPairedNoise(int headDim) {
        float[] paired = noise == null ? null : noise.clone();
        for (int c = 0; paired != null && c < paired.length; ++c) {
            if (c % headDim >= headDim / 2) {
                paired[c] = paired[c - headDim / 2];
            }
        }
        return new StaticCodes(mean, steps, widths, basis, paired, waves);
    }

    StaticCodes withWaves(float... newWaves) {
        return new StaticCodes(mean, steps, widths, basis, noise, newWaves);
    }

    /** What a query after RoPE, with its factor, adds to scores of a kv head's stored keys. */
    double bias(double[] q, int begin, int kvHead, int headDim, double scale) {
        double bias = 0;
        for (int i = 0; noise != null && i < headDim; ++i) {
            double x = scale * q[begin + i];
            bias += x * x * noise[kvHead * headDim + i] / 2;
        }
        return bias;
    }

    int width(int place, int headDim) {
        return widths[place / (headDim / RUNS)];
    }

    double start(int place) {
        return steps[2 * place];
    }

    double step(int place) {
        return steps[2 * place + 1];
    }

    /** x - mean. */
    double[] centred(double[] x) {
        double[] out = x.clone();
        for (int c = 0; c < x.length; ++c) {
            out[c] -= mean[c];
        }
        return out;
    }

    /** The mean in double precision. */
    double[] exactMean() {
        double[] out = new double[mean.length];
        for (int c = 0; c < out.length; ++c) {
            out[c] = mean[c];
        }
        return out;
    }

    /** From channels to places. */
    double[] toPlaces(double[] x, int[] order) {
        if (basis != null) {
            return basis.forward(x);
        }
        double[] places = x.clone();
        for (int place = 0; order != null && place < x.length; ++place) {
            places[place] = x[order[place]];
        }
        return places;
    }

    /** From places back to channels. */
    double[] fromPlaces(double[] places, int[] order) {
        if (basis != null) {
            return basis.backward(places);
        }
        double[] x = places.clone();
        for (int place = 0; order != null && place < x.length; ++place) {
            x[order[place]] = places[place];
        }
        return x;
    }

    /** The fields of SideParams from mean_offset on. */
    void write(ByteBuffer out, Tables tables) {
        out.putInt(tables.add(mean)).putInt(tables.add(steps)).putInt(0);
        out.putInt(basis == null ? 0 : basis.heads());
        out.putInt(basis == null ? 0 : tables.add(basis.forward()));
        out.putInt(basis == null ? 0 : tables.add(basis.inverse()));
        out.putInt(tables.add(waves)).putInt(tables.add(noise)).putInt(0);
        for (int width : widths) {
            out.put((byte) width);
        }
    }
}
