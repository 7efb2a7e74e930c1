/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import java.util.LinkedHashMap;
import java.util.Map;

/** Settings that other servers have and this one has not: only what they are anyway is allowed. */
final class UnsupportedFields {

    private static final Map<String, Object> NEUTRAL = new LinkedHashMap<>();

    static {
        NEUTRAL.put("n", 1);
        NEUTRAL.put("best_of", 1);
        NEUTRAL.put("num_beams", 1);
        NEUTRAL.put("length_penalty", 1);
        NEUTRAL.put("early_stopping", false);
        NEUTRAL.put("presence_penalty", 0);
        NEUTRAL.put("frequency_penalty", 0);
        NEUTRAL.put("typical_p", 1);
        NEUTRAL.put("min_length", 0);
        NEUTRAL.put("min_tokens", 0);
        NEUTRAL.put("top_n_tokens", 0);
        NEUTRAL.put("watermark", false);
        NEUTRAL.put("decoder_input_details", false);
        NEUTRAL.put("include_stop_str_in_output", false);
        NEUTRAL.put("skip_special_tokens", true);
        NEUTRAL.put("spaces_between_special_tokens", true);
        NEUTRAL.put("echo", false);
    }

    private UnsupportedFields() {}

    /**
     * Refuses what would change the text.
     *
     * @throws IllegalArgumentException if a field asks for more than is done anyway
     */
    static void refuse(JsonFields fields) {
        NEUTRAL.forEach(fields::requireNeutral);
    }
}
