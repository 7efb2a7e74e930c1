/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import java.util.Arrays;

/**
 * KVQuant's codebook of one side of a layer: the levels of least weighted squared error for all of
 * its elements in steps of their ranges, outliers left out (section 3.3).
 */
final class Codebook {

    /** So few bits may be read as other levels than those that they were chosen by. */
    private static final int NORMALIZED_BITS = 2;

    private final float[] elements;
    private final float[] weights;
    private int size;

    /**
     * Creates a codebook without elements.
     *
     * @param most elements to be added, at most
     */
    Codebook(int most) {
        elements = new float[most];
        weights = new float[most];
    }

    /**
     * Adds an element.
     *
     * @param value of the element
     * @param start the middle of its range
     * @param step half of the range
     * @param importance how much a squared error of the value matters; only ratios count
     */
    void add(float value, float start, float step, double importance) {
        elements[size] = (value - start) / step;
        weights[size++] = (float) (importance * step * step);
    }

    /** Writes levels and, for 2 bits, the levels of Q-Norm to read codes as. */
    void write(Calibration.Builder out, int layer, String side, int bits) {
        float[] used = Arrays.copyOf(elements, size);
        float[] levels = WeightedKMeans.levels(used, Arrays.copyOf(weights, size), 1 << bits);
        out.put(layer, side + ".levels", levels);
        if (bits == NORMALIZED_BITS) {
            out.put(layer, side + ".read_levels", readLevels(used, levels));
        }
    }

    /**
     * The levels, moved and stretched so that what is read has the elements' mean and deviation.
     */
    static float[] readLevels(float[] elements, float[] levels) {
        Moments before = new Moments();
        Moments after = new Moments();
        for (float element : elements) {
            before.add(element);
            after.add(levels[nearest(levels, element)]);
        }
        double scale = after.deviation() > 0 ? before.deviation() / after.deviation() : 1;
        float[] read = new float[levels.length];
        for (int i = 0; i < read.length; ++i) {
            read[i] = (float) (before.mean() + scale * (levels[i] - after.mean()));
        }
        return read;
    }

    /** The nearest of ascending levels, the lower one in the middle of two. */
    private static int nearest(float[] levels, float element) {
        int nearest = 0;
        for (int i = 1; i < levels.length; ++i) {
            if (Math.abs(element - levels[i]) < Math.abs(element - levels[nearest])) {
                nearest = i;
            }
        }
        return nearest;
    }

    private static final class Moments {

        private long count;
        private double sum;
        private double squares;

        void add(double x) {
            ++count;
            sum += x;
            squares += x * x;
        }

        double mean() {
            return sum / count;
        }

        double deviation() {
            return Math.sqrt(Math.max(0, squares / count - mean() * mean()));
        }
    }
}
