/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.MalformedModelException;

/**
 * How a checkpoint stretches its rotary frequencies. Everything is computed in single precision in
 * the order of operations of HuggingFace transformers, so that results agree to the last bits.
 */
sealed interface RopeScaling {

    /** The name in {@code rope_type}. */
    String type();

    /**
     * Computes the frequencies.
     *
     * @param periods the plain periods {@code theta^(2i/headDim)}, {@code headDim / 2} of them
     * @param theta the base of the periods
     * @return as many frequencies in radians per position
     */
    default float[] frequencies(float[] periods, double theta) {
        float[] frequencies = new float[periods.length];
        for (int i = 0; i < periods.length; i++) {
            frequencies[i] = scale(1f / periods[i]);
        }
        return frequencies;
    }

    /** One plain frequency scaled, for the kinds that look at nothing else. */
    default float scale(float frequency) {
        return frequency;
    }

    /** The factor on cosines and sines. */
    default double attentionFactor() {
        return 1;
    }

    /** No scaling. */
    record None() implements RopeScaling {
        @Override
        public String type() {
            return "default";
        }
    }

    /** NTK scaling that sets in beyond the original length, where it is refused. */
    record Dynamic(double factor) implements RopeScaling {
        @Override
        public String type() {
            return "dynamic";
        }
    }

    /** Position interpolation: every frequency divided by the factor. */
    record Linear(double factor) implements RopeScaling {
        @Override
        public String type() {
            return "linear";
        }

        @Override
        public float scale(float frequency) {
            return frequency / (float) factor;
        }
    }

    /** Llama 3.1: short wavelengths stay, long ones are divided, between them a smooth step. */
    record Llama3(double factor, double lowFactor, double highFactor, int originalLength)
            implements RopeScaling {

        static Llama3 parse(JsonSection rope, double factor, int originalLength)
                throws MalformedModelException {
            double low = rope.positiveNumber("low_freq_factor");
            double high = rope.positiveNumber("high_freq_factor");
            if (high <= low) {
                throw rope.wrong("high_freq_factor", "must be above low_freq_factor " + low);
            }
            return new Llama3(factor, low, high, originalLength);
        }

        @Override
        public String type() {
            return "llama3";
        }

        @Override
        public float scale(float frequency) {
            float wavelength = 1f / frequency * (float) (2 * Math.PI);
            if (wavelength > (float) (originalLength / lowFactor)) {
                return frequency / (float) factor;
            }
            if (wavelength < (float) (originalLength / highFactor)) {
                return frequency;
            }
            float turns = 1f / wavelength * originalLength;
            float smooth = (turns - (float) lowFactor) / (float) (highFactor - lowFactor);
            return (1f - smooth) * frequency / (float) factor + smooth * frequency;
        }
    }

    /**
     * YaRN (<a href="https://arxiv.org/abs/2309.00071">arXiv 2309.00071</a>): a linear ramp over
     * the channels, from {@code low} to {@code high}, between the plain and the divided frequency.
     */
    record Yarn(
            double factor,
            int originalLength,
            double betaFast,
            double betaSlow,
            boolean truncate,
            double attentionFactor)
            implements RopeScaling {

        static Yarn parse(JsonSection rope, double factor, int originalLength)
                throws MalformedModelException {
            double betaFast = orDefault(rope.numberOrZero("beta_fast"), 32);
            double betaSlow = orDefault(rope.numberOrZero("beta_slow"), 1);
            if (betaFast < betaSlow) {
                throw new MalformedModelException(
                        rope.path("beta_fast")
                                + " must be at least beta_slow, but they are "
                                + betaFast
                                + " and "
                                + betaSlow
                                + ".");
            }
            double mscale = rope.numberOrZero("mscale");
            double mscaleAll = rope.numberOrZero("mscale_all_dim");
            double derived =
                    mscale != 0 && mscaleAll != 0
                            ? magnitude(factor, mscale) / magnitude(factor, mscaleAll)
                            : magnitude(factor, 1);
            return new Yarn(
                    factor,
                    originalLength,
                    betaFast,
                    betaSlow,
                    rope.bool("truncate", true),
                    rope.positiveNumber("attention_factor", derived));
        }

        @Override
        public String type() {
            return "yarn";
        }

        @Override
        public float[] frequencies(float[] periods, double theta) {
            int headDim = 2 * periods.length;
            double low = correction(betaFast, headDim, theta);
            double high = correction(betaSlow, headDim, theta);
            if (truncate) {
                low = Math.floor(low);
                high = Math.ceil(high);
            }
            low = Math.max(low, 0);
            high = Math.min(high, headDim - 1);
            float width = (float) (low == high ? 0.001 : high - low);
            float[] frequencies = new float[periods.length];
            for (int i = 0; i < periods.length; i++) {
                float ramp = Math.min(Math.max((i - (float) low) / width, 0f), 1f);
                float plain = 1f - ramp;
                float divided = 1f / ((float) factor * periods[i]);
                frequencies[i] = divided * (1f - plain) + 1f / periods[i] * plain;
            }
            return frequencies;
        }

        /** The channel that turns this often within the original length. */
        private double correction(double rotations, int headDim, double theta) {
            return headDim
                    * Math.log(originalLength / (rotations * 2 * Math.PI))
                    / (2 * Math.log(theta));
        }

        private static double magnitude(double factor, double mscale) {
            return factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1;
        }

        private static double orDefault(double value, double defaultValue) {
            return value == 0 ? defaultValue : value;
        }
    }
}
