/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.io.IOException;
import java.nio.file.Path;
import java.util.Collection;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.OptionalLong;
import java.util.Set;

/**
 * How text is generated.
 *
 * <p>Decoding is greedy unless sampling is asked for: by a temperature above 0, by {@code
 * do_sample}, or by a restricting top-k, top-p or min-p. Immutable.
 *
 * <pre>
 * GenerationConfig config =
 *         GenerationConfig.fromModelDirectory(dir).toBuilder()
 *                 .optTemperature(0.7f)
 *                 .optTopP(0.9f)
 *                 .optSeed(42)
 *                 .build();
 * </pre>
 */
public final class GenerationConfig {

    private final boolean sampling;
    private final float temperature;
    private final int topK;
    private final float topP;
    private final float minP;
    private final float repetitionPenalty;
    private final Long seed;
    private final int maxNewTokens;
    private final Set<Integer> eosTokenIds;
    private final boolean ignoreEos;
    private final List<String> stopStrings;
    private final boolean logProbs;
    private final int topLogProbs;

    private GenerationConfig(Builder builder) {
        sampling = builder.sampling;
        temperature = builder.temperature;
        topK = builder.topK;
        topP = builder.topP;
        minP = builder.minP;
        repetitionPenalty = builder.repetitionPenalty;
        seed = builder.seed;
        maxNewTokens = builder.maxNewTokens;
        eosTokenIds = Set.copyOf(builder.eosTokenIds);
        ignoreEos = builder.ignoreEos;
        stopStrings = builder.stopStrings;
        logProbs = builder.logProbs;
        topLogProbs = builder.topLogProbs;
    }

    /**
     * Creates a builder: greedy, 256 new tokens at most, no end-of-sequence token.
     *
     * @return a new builder
     */
    public static Builder builder() {
        return new Builder();
    }

    /**
     * Reads the defaults that come with a model.
     *
     * <p>These are eos_token_id, do_sample, temperature, top_k, top_p, min_p, repetition_penalty
     * and max_new_tokens of generation_config.json; eos_token_id of config.json where that says
     * nothing. As in HuggingFace transformers, the sampling values of the file take effect only
     * when do_sample is true, there or in the builder.
     *
     * @param directory the model directory
     * @return the configuration
     * @throws IOException if neither file is there, or one cannot be read
     * @throws IllegalArgumentException if a value is not valid
     */
    public static GenerationConfig fromModelDirectory(Path directory) throws IOException {
        return GenerationConfigReader.read(directory);
    }

    /**
     * Creates a builder that starts from this configuration.
     *
     * @return a new builder
     */
    public Builder toBuilder() {
        Builder builder = new Builder();
        builder.sampling = sampling;
        builder.temperature = temperature;
        builder.topK = topK;
        builder.topP = topP;
        builder.minP = minP;
        builder.repetitionPenalty = repetitionPenalty;
        builder.seed = seed;
        builder.maxNewTokens = maxNewTokens;
        builder.eosTokenIds = eosTokenIds;
        builder.ignoreEos = ignoreEos;
        builder.stopStrings = stopStrings;
        builder.logProbs = logProbs;
        builder.topLogProbs = topLogProbs;
        return builder;
    }

    /**
     * Returns whether tokens are drawn at random; otherwise the most probable one is taken.
     *
     * @return whether tokens are drawn at random
     */
    public boolean isSampling() {
        return sampling;
    }

    /**
     * Returns the number that logits are divided by.
     *
     * @return the temperature
     */
    public float getTemperature() {
        return temperature;
    }

    /**
     * Returns how many of the most probable tokens may be drawn.
     *
     * @return the number of tokens, 0 for all
     */
    public int getTopK() {
        return topK;
    }

    /**
     * Returns the probability that the drawn tokens cover together.
     *
     * @return the probability, 1 for all tokens
     */
    public float getTopP() {
        return topP;
    }

    /**
     * Returns the least probability of a drawn token relative to the most probable one.
     *
     * @return the ratio, 0 for all tokens
     */
    public float getMinP() {
        return minP;
    }

    /**
     * Returns the factor against repetition.
     *
     * @return the factor, 1 for none
     */
    public float getRepetitionPenalty() {
        return repetitionPenalty;
    }

    /**
     * Returns the seed of the random numbers.
     *
     * @return the seed; empty if each generation draws its own
     */
    public OptionalLong getSeed() {
        return seed == null ? OptionalLong.empty() : OptionalLong.of(seed);
    }

    /**
     * Returns the most tokens that are generated for one prompt.
     *
     * @return the number of tokens
     */
    public int getMaxNewTokens() {
        return maxNewTokens;
    }

    /**
     * Returns the tokens that end a sequence.
     *
     * @return the token ids, unmodifiable
     */
    public Set<Integer> getEosTokenIds() {
        return eosTokenIds;
    }

    /**
     * Returns whether sequences go on after an end-of-sequence token.
     *
     * @return whether end-of-sequence tokens are ordinary tokens
     */
    public boolean isIgnoreEos() {
        return ignoreEos;
    }

    /**
     * Returns the strings that end a text.
     *
     * @return the strings, unmodifiable
     */
    public List<String> getStopStrings() {
        return stopStrings;
    }

    /**
     * Returns whether log-probabilities are computed.
     *
     * @return whether log-probabilities are computed
     */
    public boolean isLogProbs() {
        return logProbs;
    }

    /**
     * Returns how many alternatives are returned with each token's log-probability.
     *
     * @return the number of alternatives
     */
    public int getTopLogProbs() {
        return topLogProbs;
    }

    /** Whether a token is chosen by its logit being the largest, and nothing else is told of it. */
    boolean isPlainGreedy() {
        return !sampling && repetitionPenalty == 1 && !logProbs;
    }

    /** Builds a {@link GenerationConfig}; each value is checked when it is set. */
    public static final class Builder {

        private boolean sampling;
        private boolean greedyAsked;
        private float temperature = 1;
        private int topK;
        private float topP = 1;
        private float minP;
        private float repetitionPenalty = 1;
        private Long seed;
        private int maxNewTokens = 256;
        private Set<Integer> eosTokenIds = Set.of();
        private boolean ignoreEos;
        private List<String> stopStrings = List.of();
        private boolean logProbs;
        private int topLogProbs;

        private Builder() {}

        /**
         * Sets whether tokens are drawn at random.
         *
         * @param doSample {@code true} to draw tokens, {@code false} to take the most probable one
         * @return this builder
         */
        public Builder optDoSample(boolean doSample) {
            sampling = doSample;
            greedyAsked = !doSample;
            return this;
        }

        /**
         * Sets the number that logits are divided by, and asks for sampling if it is above 0.
         *
         * @param temperature the temperature; 0 asks for the most probable token
         * @return this builder
         */
        public Builder optTemperature(float temperature) {
            require(
                    temperature >= 0 && temperature < Float.POSITIVE_INFINITY,
                    "temperature",
                    temperature,
                    "at least 0 (0 takes the most probable token)");
            if (temperature == 0) {
                return optDoSample(false);
            }
            this.temperature = temperature;
            return optDoSample(true);
        }

        /**
         * Sets how many of the most probable tokens may be drawn, and asks for sampling unless
         * greedy decoding was asked for.
         *
         * @param topK the number of tokens, 0 for all
         * @return this builder
         */
        public Builder optTopK(int topK) {
            // -1 is how vLLM and DJL Serving write "all".
            require(topK >= -1, "top_k", topK, "at least 1, or 0 for all tokens");
            this.topK = Math.max(0, topK);
            sampling |= this.topK > 0 && !greedyAsked;
            return this;
        }

        /**
         * Sets the probability that the drawn tokens cover together, and asks for sampling unless
         * greedy decoding was asked for.
         *
         * @param topP the probability, above 0; 1 for all tokens
         * @return this builder
         */
        public Builder optTopP(float topP) {
            require(topP > 0 && topP <= 1, "top_p", topP, "above 0 and at most 1");
            this.topP = topP;
            sampling |= topP < 1 && !greedyAsked;
            return this;
        }

        /**
         * Sets the least probability of a drawn token relative to the most probable one, and asks
         * for sampling unless greedy decoding was asked for.
         *
         * @param minP the ratio, from 0 (all tokens) to 1
         * @return this builder
         */
        public Builder optMinP(float minP) {
            require(minP >= 0 && minP <= 1, "min_p", minP, "from 0 to 1");
            this.minP = minP;
            sampling |= minP > 0 && !greedyAsked;
            return this;
        }

        /**
         * Sets the factor against repetition: of each token in the prompt or the generated text, a
         * positive logit is divided by it and a negative one multiplied.
         *
         * @param repetitionPenalty the factor, above 0; 1 for none, above 1 against repetition
         * @return this builder
         */
        public Builder optRepetitionPenalty(float repetitionPenalty) {
            require(
                    repetitionPenalty > 0 && repetitionPenalty < Float.POSITIVE_INFINITY,
                    "repetition_penalty",
                    repetitionPenalty,
                    "above 0 (1 for none)");
            this.repetitionPenalty = repetitionPenalty;
            return this;
        }

        /**
         * Sets the seed of the random numbers.
         *
         * @param seed the seed; the same seed, prompt and values give the same text
         * @return this builder
         */
        public Builder optSeed(long seed) {
            this.seed = seed;
            return this;
        }

        /**
         * Sets the most tokens that are generated for one prompt.
         *
         * @param maxNewTokens the number of tokens
         * @return this builder
         */
        public Builder optMaxNewTokens(int maxNewTokens) {
            require(maxNewTokens >= 1, "max_new_tokens", maxNewTokens, "at least 1");
            this.maxNewTokens = maxNewTokens;
            return this;
        }

        /**
         * Sets the tokens that end a sequence.
         *
         * @param eosTokenIds the token ids; none to end at {@code max_new_tokens} only
         * @return this builder
         */
        public Builder optEosTokenIds(Collection<Integer> eosTokenIds) {
            for (int id : eosTokenIds) {
                require(id >= 0, "eos_token_id", id, "at least 0");
            }
            this.eosTokenIds = new LinkedHashSet<>(eosTokenIds);
            return this;
        }

        /**
         * Sets whether sequences go on after an end-of-sequence token.
         *
         * @param ignoreEos whether end-of-sequence tokens are ordinary tokens
         * @return this builder
         */
        public Builder optIgnoreEos(boolean ignoreEos) {
            this.ignoreEos = ignoreEos;
            return this;
        }

        /**
         * Sets the strings that end a text; they are not part of it.
         *
         * @param stopStrings the strings, none of them empty
         * @return this builder
         */
        public Builder optStopStrings(List<String> stopStrings) {
            for (String stop : stopStrings) {
                if (stop == null || stop.isEmpty()) {
                    throw new IllegalArgumentException(
                            "A stop string is empty, which would end every text at once; leave it"
                                    + " out.");
                }
            }
            this.stopStrings = List.copyOf(stopStrings);
            return this;
        }

        /**
         * Sets whether log-probabilities are computed.
         *
         * @param logProbs whether each token comes with its log-probability
         * @return this builder
         */
        public Builder optLogProbs(boolean logProbs) {
            this.logProbs = logProbs;
            topLogProbs = logProbs ? topLogProbs : 0;
            return this;
        }

        /**
         * Sets how many alternatives come with each token's log-probability.
         *
         * @param topLogProbs the number of alternatives, from 0 to 100; above 0 asks for
         *     log-probabilities
         * @return this builder
         */
        public Builder optTopLogProbs(int topLogProbs) {
            require(
                    topLogProbs >= 0 && topLogProbs <= 100,
                    "top_logprobs",
                    topLogProbs,
                    "from 0 to 100");
            this.topLogProbs = topLogProbs;
            logProbs |= topLogProbs > 0;
            return this;
        }

        /**
         * Sets the values of a map, as requests and generation_config.json carry them.
         *
         * <p>Keys are max_new_tokens, temperature, top_k, top_p, min_p, do_sample,
         * repetition_penalty, seed, eos_token_id, ignore_eos, stop or stop_strings (a string or a
         * list), logprobs and top_logprobs. Values are of their type or strings; {@code null} and
         * other keys are skipped.
         *
         * @param arguments the values
         * @return this builder
         * @throws IllegalArgumentException if a value is not valid
         */
        public Builder configure(Map<String, ?> arguments) {
            GenerationConfigReader.configure(this, arguments);
            return this;
        }

        /** Takes sampling values as defaults that wait for {@code do_sample}. */
        Builder sampleOnlyIf(boolean doSample) {
            sampling = doSample;
            greedyAsked = false;
            return this;
        }

        /**
         * Builds the configuration.
         *
         * @return the configuration
         */
        public GenerationConfig build() {
            return new GenerationConfig(this);
        }

        private static void require(boolean valid, String name, Object value, String allowed) {
            if (!valid) {
                throw new IllegalArgumentException(
                        name + " " + value + " is not valid; it must be " + allowed + ".");
            }
        }
    }
}
