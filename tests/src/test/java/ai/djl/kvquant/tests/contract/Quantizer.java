/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;
import java.util.Arrays;

/**
 * RotateKV's quantizer by its definition: both bounds of a group are clipped; scale = (max - min) /
 * (2^bits - 1), a half; zero = round(-min / scale); code = round(x / scale) + zero, limited to the
 * codes. With a float zero: zero = -min / scale, a half; code = round(x / scale + zero).
 *
 * <p>x is computed in double precision here and in fp32 by the library, so that what is rounded may
 * round to either neighbour where it lies within the error of fp32 from a boundary; nowhere else.
 */
final class Quantizer {

    private static final double FP32 = 2e-6;
    private static final double BOUNDARY = 1e-3;

    /** Integers up to here are halves: a group farther from zero, in steps, gets a larger step. */
    private static final double LARGEST_ZERO = 2048;

    private final PageFormat format;
    private final Side side;
    private final int[][] channels;

    Quantizer(PageFormat format) {
        this.format = format;
        side = format.side;
        channels = channelsOf(side.groups(format.layer.channels()), format.groups());
    }

    /** What is wrong with the stored form of x, [channels] in the rotated basis; null: nothing. */
    String problem(double[] x, ByteBuffer page, int slot) {
        for (int group = 0; group < format.groups(); ++group) {
            String problem = groupProblem(x, channels[group], page, slot, group);
            if (problem != null) {
                return "group " + group + ": " + problem;
            }
        }
        return null;
    }

    private static int[][] channelsOf(int[] groups, int count) {
        int[][] channels = new int[count][groups.length / count];
        int[] filled = new int[count];
        for (int c = 0; c < groups.length; ++c) {
            channels[groups[c]][filled[groups[c]]++] = c;
        }
        return channels;
    }

    private String groupProblem(double[] x, int[] channels, ByteBuffer page, int slot, int group) {
        double scale = Half.read(page, format.scaleOffset(slot, group));
        double zero = Half.read(page, format.zeroOffset(slot, group));
        double low = Arrays.stream(channels).mapToDouble(c -> x[c]).min().orElseThrow();
        double high = Arrays.stream(channels).mapToDouble(c -> x[c]).max().orElseThrow();
        // Every rotated channel carries the rounding errors of the largest ones.
        double largest = Arrays.stream(x).map(Math::abs).max().orElseThrow();
        if (!(scale > 0) || !(Math.abs(zero) <= LARGEST_ZERO)) {
            return "scale " + scale + ", zero " + zero;
        }
        if (high - low <= 1e-9 * largest) {
            return constantProblem(x, channels, page, slot, scale, zero);
        }
        double step = (high - low) * side.clip() / side.levelSteps();
        if (-low * side.clip() > LARGEST_ZERO * scale * 0.999
                || low * side.clip() > LARGEST_ZERO * scale * 0.999
                || Math.abs(low) * side.clip() > LARGEST_ZERO * step) {
            return boundsProblem(x, channels, page, slot, scale, zero, largest);
        }
        if (!isHalfOf(scale, Math.max(step, 0x1p-24), FP32 * largest / side.levelSteps())) {
            return "scale " + scale + ", not " + step + " as a half";
        }
        double exactZero = -low * side.clip() / scale;
        double error = FP32 * (1 + Math.abs(exactZero) + largest / scale);
        if (side.floatZero()
                ? !isHalfOf(zero, exactZero, error)
                : zero != Math.rint(zero) || Math.abs(zero - exactZero) > 0.5 + error) {
            return "zero " + zero + ", not " + exactZero + " rounded";
        }
        for (int c : channels) {
            String problem = codeProblem(x[c], format.code(page, slot, c), scale, zero, largest);
            if (problem != null) {
                return problem;
            }
        }
        return boundsProblem(x, channels, page, slot, scale, zero, largest);
    }

    /** Whether a stored half is a number within error of the exact one, rounded. */
    private static boolean isHalfOf(double stored, double exact, double error) {
        return stored >= Half.round(exact - error) && stored <= Half.round(exact + error);
    }

    private String codeProblem(double x, int code, double scale, double zero, double largest) {
        double steps = side.floatZero() ? x / scale + zero : x / scale;
        double margin = BOUNDARY + FP32 * largest / scale;
        double lowest = Math.rint(steps - margin) + (side.floatZero() ? 0 : zero);
        double highest = Math.rint(steps + margin) + (side.floatZero() ? 0 : zero);
        return code < limit(lowest) || code > limit(highest)
                ? "code " + code + " of " + x + " with scale " + scale + ", zero " + zero
                : null;
    }

    private double limit(double code) {
        return Math.min(side.levelSteps(), Math.max(0, code));
    }

    /** A constant group is exact up to the rounding of its scale, whatever the clip ratio. */
    private String constantProblem(
            double[] x, int[] channels, ByteBuffer page, int slot, double scale, double zero) {
        for (int c : channels) {
            double back = scale * (format.code(page, slot, c) - zero);
            if (!(Math.abs(back - x[c]) <= 0x1p-11 * 1.0001 * Math.abs(x[c]) + 0x1p-24)) {
                return "constant " + x[c] + " reads back as " + back;
            }
        }
        return null;
    }

    /** Half a step inside the codes' range; outside of it, the nearest code. */
    private String boundsProblem(
            double[] x,
            int[] channels,
            ByteBuffer page,
            int slot,
            double scale,
            double zero,
            double largest) {
        for (int c : channels) {
            double back = scale * (format.code(page, slot, c) - zero);
            double inside =
                    Math.min(scale * (side.levelSteps() - zero), Math.max(-scale * zero, x[c]));
            double allowed = scale * (0.5 + BOUNDARY) + FP32 * largest;
            if (!(Math.abs(back - inside) <= allowed)) {
                return x[c] + " reads back as " + back + " with scale " + scale;
            }
        }
        return null;
    }
}
