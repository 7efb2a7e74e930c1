/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import java.util.Arrays;

/**
 * Weighted k-means on a line.
 *
 * <p>Clusters of a line are runs of the sorted values, so that the best ones follow from those of
 * one level less. The best last cut never moves to the left as values are added, which lets each
 * level be solved by divide and conquer.
 */
final class WeightedKMeans {

    /** So many points are exact; more are gathered in a histogram of about so many bins. */
    private static final int POINTS = 2048;

    private WeightedKMeans() {}

    /**
     * Returns the k levels, ascending, of least weighted squared distance from the values. Where
     * fewer than k values are distinct, each is a level and the last one is repeated.
     *
     * @param values the values, in any order
     * @param weights the weight of each value; those of weight 0 count for nothing
     * @param k the number of levels
     */
    static float[] levels(float[] values, float[] weights, int k) {
        return levels(values, weights, k, POINTS);
    }

    /** The same with a limit of its own for the points of the histogram. */
    static float[] levels(float[] values, float[] weights, int k, int points) {
        if (k < 1) {
            throw new IllegalArgumentException(k + " levels were asked for; ask for at least one.");
        }
        WeightedPoints line = WeightedPoints.of(values, weights, points);
        int clusters = Math.min(k, line.size());
        int[] cuts = cuts(line, clusters);
        float[] levels = new float[k];
        for (int i = 0; i < k; ++i) {
            levels[i] = i < clusters ? line.mean(cuts[i], cuts[i + 1]) : levels[clusters - 1];
        }
        return levels;
    }

    /** Returns the ends of the best clusters: cluster c has the points cuts[c] to cuts[c + 1]. */
    private static int[] cuts(WeightedPoints line, int clusters) {
        int n = line.size();
        double[] before = new double[n + 1]; // least cost of the first points with one cluster less
        Arrays.fill(before, Double.POSITIVE_INFINITY);
        before[0] = 0;
        int[][] lastCut = new int[clusters][n + 1];
        for (int c = 0; c < clusters; ++c) {
            Level level = new Level(line, before, filled(n + 1), lastCut[c]);
            // every cluster has a point, those that follow too
            level.solve(c + 1, n - (clusters - 1 - c), c, n - 1);
            before = level.costs();
        }
        int[] cuts = new int[clusters + 1];
        cuts[clusters] = n;
        for (int c = clusters - 1; c >= 0; --c) {
            cuts[c] = lastCut[c][cuts[c + 1]];
        }
        return cuts;
    }

    private static double[] filled(int length) {
        double[] costs = new double[length];
        Arrays.fill(costs, Double.POSITIVE_INFINITY);
        return costs;
    }

    /**
     * One cluster more.
     *
     * @param line the points
     * @param before the least cost of the first n points without this cluster
     * @param costs the least cost of the first n points with it, to be filled
     * @param cuts where it then starts, to be filled
     */
    private record Level(WeightedPoints line, double[] before, double[] costs, int[] cuts) {

        /** Solves for the ends first to last, whose cuts lie in lowest to highest. */
        void solve(int first, int last, int lowest, int highest) {
            if (first > last) {
                return;
            }
            int end = (first + last) >>> 1;
            for (int cut = lowest; cut <= Math.min(highest, end - 1); ++cut) {
                double cost = before[cut] + line.cost(cut, end);
                if (cost < costs[end]) {
                    costs[end] = cost;
                    cuts[end] = cut;
                }
            }
            solve(first, end - 1, lowest, cuts[end]);
            solve(end + 1, last, cuts[end], highest);
        }
    }
}
