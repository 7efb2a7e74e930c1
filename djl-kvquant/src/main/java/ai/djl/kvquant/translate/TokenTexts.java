/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;

/**
 * Makes text of single tokens.
 *
 * @param tokenizer the tokenizer
 */
record TokenTexts(HuggingFaceTokenizer tokenizer) {

    String text(int token) {
        return tokenizer.decode(new long[] {token}, false);
    }

    /** The bytes of a token's text in UTF-8; null for a token that is a part of a character. */
    static List<Integer> bytes(String text) {
        if (text.indexOf('\uFFFD') >= 0) {
            return null;
        }
        List<Integer> bytes = new ArrayList<>();
        for (byte each : text.getBytes(StandardCharsets.UTF_8)) {
            bytes.add(each & 0xff);
        }
        return bytes;
    }
}
