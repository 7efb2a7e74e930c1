/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * Static codes of a layer's keys: a width, a start and a step for each place (StaticFormat).
 *
 * @param order the channel, {@code head * headDim + c}, at each place
 * @param widths bits of the codes of each run of places
 * @param steps start and step of each place
 * @param errors mean squared error of each place
 */
record KeyCodes(int[] order, int[] widths, float[] steps, double[] errors) {

    static final int RUNS = 16;

    /** Start and step of each channel for each width, and what they cost. */
    private record Fits(UniformQuantizer[][][] quantizers, double[][][] distortions) {}

    /**
     * Chooses codes.
     *
     * @param samples of each channel, {@code [heads][headDim][tokens]}
     * @param weights how much a squared error of each channel matters, {@code [heads][headDim]}
     * @param bits bits per channel on average
     */
    static KeyCodes choose(float[][][] samples, double[][] weights, double bits) {
        Fits fits = fit(samples, weights);
        double[][] variances = new double[weights.length][weights[0].length];
        for (int h = 0; h < variances.length; ++h) {
            for (int c = 0; c < variances[h].length; ++c) {
                variances[h][c] = fits.distortions[h][c][0];
            }
        }
        BitAllocator.Allocation allocation =
                BitAllocator.allocate(fits.distortions, variances, RUNS, bits);
        return of(allocation, fits, weights);
    }

    /** Writes keys.widths and keys.steps. */
    void write(Calibration.Builder out, int layer) {
        out.put(layer, "keys.widths", widths);
        out.put(layer, "keys.steps", steps, order.length, 2);
    }

    /** Writes keys.order, too. */
    void writeOrdered(Calibration.Builder out, int layer) {
        write(out, layer);
        out.put(layer, "keys.order", order);
    }

    private static Fits fit(float[][][] samples, double[][] weights) {
        int heads = samples.length;
        int channels = samples[0].length;
        int[] widths = BitAllocator.widths();
        Fits fits =
                new Fits(
                        new UniformQuantizer[heads][channels][widths.length],
                        new double[heads][channels][widths.length]);
        IntStream.range(0, heads * channels)
                .parallel()
                .forEach(
                        i -> {
                            int h = i / channels;
                            int c = i % channels;
                            SortedSamples sorted = new SortedSamples(samples[h][c]);
                            for (int w = 0; w < widths.length; ++w) {
                                UniformQuantizer.Fit fit = sorted.fit(widths[w]);
                                fits.quantizers[h][c][w] = fit.quantizer();
                                fits.distortions[h][c][w] = weights[h][c] * fit.meanSquaredError();
                            }
                        });
        return fits;
    }

    private static KeyCodes of(BitAllocator.Allocation allocation, Fits fits, double[][] weights) {
        int[] order = allocation.order();
        int headDim = fits.quantizers[0].length;
        float[] steps = new float[2 * order.length];
        double[] errors = new double[order.length];
        for (int place = 0; place < order.length; ++place) {
            int head = order[place] / headDim;
            int c = order[place] % headDim;
            int width = allocation.widths()[place % headDim * RUNS / headDim];
            int index = Arrays.binarySearch(BitAllocator.widths(), width);
            UniformQuantizer quantizer = fits.quantizers[head][c][index];
            steps[2 * place] = quantizer.start();
            steps[2 * place + 1] = quantizer.step();
            errors[place] = fits.distortions[head][c][index] / Math.max(weights[head][c], 1e-30);
        }
        return new KeyCodes(order, allocation.widths(), steps, errors);
    }
}
