/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import java.util.Arrays;
import java.util.List;
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

    /**
     * The best quantizer of each channel for each width.
     *
     * @param quantizers {@code [heads][headDim][widths]}
     * @param errors their weighted mean squared errors, in the same shape
     * @param weights how much a squared error of each channel matters, {@code [heads][headDim]}
     */
    record Fits(UniformQuantizer[][][] quantizers, double[][][] errors, double[][] weights) {

        private double[][][] distortions() {
            double[][][] distortions = new double[errors.length][errors[0].length][];
            for (int h = 0; h < errors.length; ++h) {
                for (int c = 0; c < errors[h].length; ++c) {
                    double weight = weights[h][c];
                    distortions[h][c] =
                            Arrays.stream(errors[h][c]).map(error -> weight * error).toArray();
                }
            }
            return distortions;
        }

        private double[][] variances() {
            return Arrays.stream(distortions())
                    .map(head -> Arrays.stream(head).mapToDouble(widths -> widths[0]).toArray())
                    .toArray(double[][]::new);
        }
    }

    /**
     * Chooses the codes of all layers, which share a budget.
     *
     * @param layers the fits of each layer
     * @param bits bits per channel on average
     */
    static List<KeyCodes> choose(List<Fits> layers, double bits) {
        List<BitAllocator.Allocation> allocations =
                BitAllocator.allocate(
                        layers.stream().map(Fits::distortions).toList(),
                        layers.stream().map(Fits::variances).toList(),
                        RUNS,
                        bits);
        return IntStream.range(0, layers.size())
                .mapToObj(i -> of(allocations.get(i), layers.get(i)))
                .toList();
    }

    /**
     * Fits quantizers of all widths.
     *
     * @param samples of each channel, {@code [heads][headDim][tokens]}
     * @param tokenWeights how much errors of each token matter, {@code [heads][tokens]}
     * @param weights how much a squared error of each channel matters, {@code [heads][headDim]}
     */
    static Fits fit(float[][][] samples, double[][] tokenWeights, double[][] weights) {
        int heads = samples.length;
        int channels = samples[0].length;
        int[] widths = BitAllocator.widths();
        Fits fits =
                new Fits(
                        new UniformQuantizer[heads][channels][widths.length],
                        new double[heads][channels][widths.length],
                        weights);
        IntStream.range(0, heads * channels)
                .parallel()
                .forEach(
                        i -> {
                            int h = i / channels;
                            int c = i % channels;
                            SortedSamples sorted =
                                    new SortedSamples(samples[h][c], tokenWeights[h]);
                            for (int w = 0; w < widths.length; ++w) {
                                UniformQuantizer.Fit fit = sorted.fit(widths[w]);
                                fits.quantizers[h][c][w] = fit.quantizer();
                                fits.errors[h][c][w] = fit.meanSquaredError();
                            }
                        });
        return fits;
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

    private static KeyCodes of(BitAllocator.Allocation allocation, Fits fits) {
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
            errors[place] = fits.errors[head][c][index];
        }
        return new KeyCodes(order, allocation.widths(), steps, errors);
    }
}
