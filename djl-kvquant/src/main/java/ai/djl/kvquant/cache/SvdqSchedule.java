/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Arrays;

/**
 * SVDq's bits: a layer's latent channels, sorted by descending variance, are cut into 8 equal
 * groups, each with a width of its own.
 */
public final class SvdqSchedule {

    private static final int[][] GROUPS = {{8, 4, 4, 2, 0, 0, 0, 0}, {4, 4, 2, 0, 0, 0, 0, 0}};

    private final int[] groups;

    private SvdqSchedule(int[] groups) {
        this.groups = groups;
    }

    /**
     * Returns the paper's schedule of an average.
     *
     * @param bits 2.25 or 1.25
     * @return the schedule
     * @throws IllegalArgumentException if the paper has none of this average
     */
    public static SvdqSchedule of(double bits) {
        for (int[] groups : GROUPS) {
            SvdqSchedule schedule = new SvdqSchedule(groups);
            if (schedule.bits() == bits) {
                return schedule;
            }
        }
        throw new IllegalArgumentException(
                "SVDq has no schedule of " + bits + " bits; allowed: 2.25, 1.25.");
    }

    /**
     * Returns the average width.
     *
     * @return bits per latent channel
     */
    public double bits() {
        return Arrays.stream(groups).average().orElseThrow();
    }

    /**
     * Returns the widths in the form of static codes: of each run of a head's places, where each
     * place of all heads together holds latents that are neighbours in rank.
     *
     * @return the widths, two runs for each group
     */
    public int[] widths() {
        int[] widths = new int[StaticFormat.RUNS];
        for (int run = 0; run < widths.length; ++run) {
            widths[run] = groups[run * groups.length / widths.length];
        }
        return widths;
    }

    /**
     * Returns what a sequence takes that has a basis of its own: the rows of the channels that are
     * kept, in fp16, and in fp32 their starts and steps and the mean.
     *
     * @param channels the channels of a layer's keys
     * @return bits per layer
     */
    public long basisBits(int channels) {
        long kept = channels * Arrays.stream(groups).filter(b -> b > 0).count() / groups.length;
        return 16L * kept * channels + 64L * kept + 32L * channels;
    }

    /**
     * Returns from which length on a basis of its own saves a sequence memory: a shorter one would
     * take less in fp16.
     *
     * @param channels the channels of a layer's keys
     * @return the number of tokens
     */
    public int shortestPrompt(int channels) {
        return (int) Math.ceil(basisBits(channels) / ((16 - bits()) * channels));
    }
}
