/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.time.Duration;
import java.util.List;

/**
 * What became of one prompt.
 *
 * @param tokens the generated token ids, an end-of-sequence token included
 * @param text the generated text, without end-of-sequence token, special tokens and stop string;
 *     empty without a tokenizer
 * @param finishReason why the sequence ended
 * @param message for {@link FinishReason#CACHE_FULL} how much fits and what to do, otherwise empty
 * @param retryable for {@link FinishReason#CACHE_FULL} whether the sequence has room in an empty
 *     cache, so that it may get further when others have ended
 * @param promptTokens the number of tokens of the prompt
 * @param logProbs the log-probability of each generated token; empty unless asked for
 * @param topLogProbs the most probable tokens at each place, best first; empty unless asked for
 * @param timeToFirstToken from the start of the generation, prefill of the whole batch included, to
 *     this sequence's first token; zero if there is none
 * @param tokensPerSecond the decoding speed of this sequence after its first token; 0 with fewer
 *     than two tokens
 * @param cacheUsage the KV cache of the whole batch when this sequence ended; {@code null} if it
 *     was not being decoded then
 */
public record GenerationResult(
        int[] tokens,
        String text,
        FinishReason finishReason,
        String message,
        boolean retryable,
        int promptTokens,
        List<TokenLogProb> logProbs,
        List<List<TokenLogProb>> topLogProbs,
        Duration timeToFirstToken,
        double tokensPerSecond,
        CacheUsage cacheUsage) {

    /**
     * Returns the generated token ids, an end-of-sequence token included.
     *
     * @return a copy of the token ids
     */
    @Override
    public int[] tokens() {
        return tokens.clone();
    }
}
