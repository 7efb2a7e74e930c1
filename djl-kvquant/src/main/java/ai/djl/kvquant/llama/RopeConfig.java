/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.MalformedModelException;
import java.util.Set;

/**
 * The rotary position embedding of a LLaMA checkpoint.
 *
 * <p>Read from {@code rope_theta} and {@code rope_scaling}, or from {@code rope_parameters} as
 * transformers 5 writes them. The kinds default, linear, llama3, yarn and dynamic are accepted; the
 * last only up to the original length, because beyond it the frequencies depend on the sequence
 * length and keys already in the KV cache would have to change. Instances are immutable.
 */
public final class RopeConfig {

    private static final double DEFAULT_THETA = 10000;
    private static final Set<String> NOT_SCALING =
            Set.of("rope_theta", "partial_rotary_factor", "rope_type", "type");

    private final int headDim;
    private final double theta;
    private final int maxPositionEmbeddings;
    private final RopeScaling scaling;

    private RopeConfig(int headDim, double theta, int maxPosition, RopeScaling scaling) {
        this.headDim = headDim;
        this.theta = theta;
        this.maxPositionEmbeddings = maxPosition;
        this.scaling = scaling;
    }

    /**
     * Reads the rotary position embedding of a model configuration.
     *
     * @param config the configuration
     * @param headDim the width of one head, even
     * @param maxPosition the value of {@code max_position_embeddings}
     * @return the rotary position embedding
     * @throws MalformedModelException if a value is missing, wrong or not supported
     */
    static RopeConfig parse(JsonSection config, int headDim, int maxPosition)
            throws MalformedModelException {
        requireWhole(config);
        double topTheta = theta(config, DEFAULT_THETA);
        JsonSection rope = section(config);
        if (rope == null || rope.isEmpty()) {
            return new RopeConfig(headDim, topTheta, maxPosition, new RopeScaling.None());
        }
        requireWhole(rope);
        String type = type(rope);
        double theta = theta(rope, topTheta);
        int original = originalLength(config, rope, maxPosition);
        RopeScaling scaling =
                switch (type) {
                    case "default" -> new RopeScaling.None();
                    case "linear" -> new RopeScaling.Linear(factor(rope));
                    case "llama3" -> RopeScaling.Llama3.parse(rope, factor(rope), original);
                    case "yarn" -> {
                        double factor = yarnFactor(rope, maxPosition, original);
                        yield RopeScaling.Yarn.parse(rope, factor, original);
                    }
                    case "dynamic" -> new RopeScaling.Dynamic(factor(rope));
                    default ->
                            throw rope.wrong(
                                    rope.has("rope_type") ? "rope_type" : "type",
                                    "must be one of default, linear, llama3, yarn, dynamic");
                };
        return new RopeConfig(headDim, theta, maxPosition, scaling);
    }

    /**
     * Returns the kind of scaling.
     *
     * @return {@code default}, {@code linear}, {@code llama3}, {@code yarn} or {@code dynamic}
     */
    public String type() {
        return scaling.type();
    }

    /**
     * Returns the base of the frequencies.
     *
     * @return {@code rope_theta}
     */
    public double theta() {
        return theta;
    }

    /**
     * Returns the angle per position of each pair of channels, scaled.
     *
     * <p>Channel {@code i} turns together with channel {@code i + headDim / 2}. The values are
     * computed in single precision, as transformers does, so that long contexts see the same
     * angles.
     *
     * @return {@code headDim / 2} values in radians, each exactly representable as a float
     */
    public double[] inverseFrequencies() {
        float[] periods = new float[headDim / 2];
        for (int i = 0; i < periods.length; i++) {
            periods[i] = (float) Math.pow((float) theta, 2f * i / headDim);
        }
        float[] frequencies = scaling.frequencies(periods, theta);
        double[] result = new double[frequencies.length];
        for (int i = 0; i < result.length; i++) {
            result[i] = frequencies[i];
        }
        return result;
    }

    /**
     * Returns the factor by which transformers multiplies the cosines and sines of queries and of
     * keys. Applied to queries alone it must be squared.
     *
     * @return 1 except for yarn
     */
    public double attentionFactor() {
        return scaling.attentionFactor();
    }

    /**
     * Returns the longest sequence for which {@link #inverseFrequencies()} hold.
     *
     * @return the original length in tokens for dynamic scaling, {@link Integer#MAX_VALUE} for
     *     every other kind: their frequencies do not depend on the length
     */
    public int maxPosition() {
        return scaling instanceof RopeScaling.Dynamic ? maxPositionEmbeddings : Integer.MAX_VALUE;
    }

    /**
     * Returns the longest sequence that the model is meant for.
     *
     * @return {@code max_position_embeddings}; with linear scaling times its factor, with yarn at
     *     least the original length times its factor
     */
    public int contextLength() {
        if (scaling instanceof RopeScaling.Linear linear) {
            return (int) Math.min(maxPositionEmbeddings * linear.factor(), Integer.MAX_VALUE);
        }
        if (scaling instanceof RopeScaling.Yarn yarn) {
            return (int) Math.max(maxPositionEmbeddings, yarn.originalLength() * yarn.factor());
        }
        return maxPositionEmbeddings;
    }

    /**
     * Refuses a sequence that is longer than {@link #maxPosition()}.
     *
     * @param tokens the length of the sequence, prompt and generated tokens together
     * @throws IllegalArgumentException if the sequence is too long
     */
    public void checkLength(long tokens) {
        if (tokens > maxPosition()) {
            throw new IllegalArgumentException(
                    "A sequence of "
                            + tokens
                            + " tokens is beyond the original length "
                            + maxPosition()
                            + " of this model's dynamic RoPE scaling, where every key in the KV"
                            + " cache would have to change; use at most "
                            + maxPosition()
                            + " tokens, or a checkpoint with linear, llama3 or yarn scaling.");
        }
    }

    @Override
    public String toString() {
        return scaling.type() + " RoPE with theta " + theta;
    }

    private static JsonSection section(JsonSection config) throws MalformedModelException {
        boolean old = config.has("rope_scaling");
        if (!config.has("rope_parameters")) {
            return old ? config.object("rope_scaling") : null;
        }
        JsonSection parameters = config.object("rope_parameters");
        if (old && !parameters.sameAs(config.object("rope_scaling"))) {
            throw new MalformedModelException(
                    config.path("rope_scaling")
                            + " and rope_parameters disagree; keep one of them.");
        }
        return parameters;
    }

    private static String type(JsonSection rope) throws MalformedModelException {
        if (rope.has("rope_type")) {
            return rope.string("rope_type");
        }
        for (String key : rope.keys()) {
            if (!NOT_SCALING.contains(key) && !rope.has("type")) {
                // without this check a scaling, or one dictionary a layer type, would be dropped
                throw new MalformedModelException(
                        rope.path("rope_type") + " is missing beside " + key + ".");
            }
        }
        return rope.string("type", "default");
    }

    private static void requireWhole(JsonSection section) throws MalformedModelException {
        if (section.positiveNumber("partial_rotary_factor", 1) != 1) {
            throw section.wrong(
                    "partial_rotary_factor",
                    "must be 1 (partial rotary embeddings are not supported)");
        }
    }

    private static double theta(JsonSection section, double defaultValue)
            throws MalformedModelException {
        double theta = section.positiveNumber("rope_theta", defaultValue);
        if (theta <= 1) {
            throw section.wrong("rope_theta", "must be above 1");
        }
        return theta;
    }

    private static double factor(JsonSection rope) throws MalformedModelException {
        double factor = rope.positiveNumber("factor");
        if (factor < 1) {
            throw rope.wrong("factor", "must be at least 1");
        }
        return factor;
    }

    /** Files of DeepSeek's line write null and leave the factor to the ratio of the lengths. */
    private static double yarnFactor(JsonSection rope, int maxPosition, int original)
            throws MalformedModelException {
        boolean derived = rope.mentions("factor") && !rope.has("factor");
        return derived ? (double) maxPosition / original : factor(rope);
    }

    /** The order of precedence is that of transformers 5. */
    private static int originalLength(JsonSection config, JsonSection rope, int maxPosition)
            throws MalformedModelException {
        String key = "original_max_position_embeddings";
        return config.positiveInt(key, rope.positiveInt(key, maxPosition));
    }
}
