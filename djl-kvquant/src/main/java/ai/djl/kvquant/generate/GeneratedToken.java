/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.util.List;

/**
 * One generated token, as listeners and streams receive it.
 *
 * @param sequence the index of the prompt that it continues
 * @param position its place among the generated tokens of the sequence, from 0
 * @param id the token id
 * @param text the text that became certain with this token; empty while characters or a possible
 *     stop string are incomplete, and empty without a tokenizer
 * @param logProb the token's log-probability (see {@link TokenLogProb}), {@code NaN} unless asked
 *     for
 * @param alternatives the most probable tokens at this place, best first; empty unless asked for
 * @param finishReason why the sequence ends with this token, or {@code null} if it goes on
 */
public record GeneratedToken(
        int sequence,
        int position,
        int id,
        String text,
        float logProb,
        List<TokenLogProb> alternatives,
        FinishReason finishReason) {}
