/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import com.google.gson.Gson;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Small tokenizers of the two kinds that LLaMA checkpoints use, written as tokenizer.json. */
final class Tokenizers {

    private Tokenizers() {}

    /** Byte-level BPE as in Llama 3 and SmolLM: 256 bytes, a few merges, two special tokens. */
    static HuggingFaceTokenizer byteLevel() {
        return byteLevel(Map.of("truncation", "false"));
    }

    static HuggingFaceTokenizer byteLevel(Map<String, String> options) {
        Map<String, Integer> vocabulary = new LinkedHashMap<>();
        vocabulary.put("<|end|>", 0);
        vocabulary.put("<|start|>", 1);
        for (int b = 0; b < 256; b++) {
            vocabulary.put(visible(b), vocabulary.size());
        }
        List<String> merges = new ArrayList<>();
        // "\u00f0\u0178" are the first two bytes of most emoji: the last two stay single tokens.
        String[][] pairs = {
            {"\u0120", "t"},
            {"h", "e"},
            {"\u0120t", "he"},
            {"l", "l"},
            {"ll", "o"},
            {visible(0xF0), visible(0x9F)},
            {visible(0xE4), visible(0xBD)}
        };
        for (String[] pair : pairs) {
            merges.add(pair[0] + " " + pair[1]);
            vocabulary.put(pair[0] + pair[1], vocabulary.size());
        }
        Map<String, Object> byteLevel = new LinkedHashMap<>();
        byteLevel.put("type", "ByteLevel");
        byteLevel.put("add_prefix_space", false);
        byteLevel.put("trim_offsets", true);
        byteLevel.put("use_regex", true);
        return tokenizer(
                List.of(special(0, "<|end|>"), special(1, "<|start|>")),
                null,
                byteLevel,
                byteLevel,
                Map.of("type", "BPE", "vocab", vocabulary, "merges", merges),
                options);
    }

    /** SentencePiece-style BPE as in Llama 2: spaces as U+2581, unknown characters as bytes. */
    static HuggingFaceTokenizer sentencePiece() {
        Map<String, Object> decoder =
                Map.of(
                        "type",
                        "Sequence",
                        "decoders",
                        List.of(
                                Map.of(
                                        "type", "Replace",
                                        "pattern", Map.of("String", "\u2581"),
                                        "content", " "),
                                Map.of("type", "ByteFallback"),
                                Map.of("type", "Fuse"),
                                Map.of("type", "Strip", "content", " ", "start", 1, "stop", 0)));
        return sentencePiece(decoder);
    }

    /** The same with the decoder that newer conversions write. */
    static HuggingFaceTokenizer metaspace() {
        return sentencePiece(
                Map.of(
                        "type",
                        "Sequence",
                        "decoders",
                        List.of(
                                Map.of("type", "ByteFallback"),
                                Map.of(
                                        "type", "Metaspace",
                                        "replacement", "\u2581",
                                        "prepend_scheme", "always",
                                        "split", false))));
    }

    private static HuggingFaceTokenizer sentencePiece(Map<String, ?> decoder) {
        Map<String, Integer> vocabulary = new LinkedHashMap<>();
        for (String special : List.of("<unk>", "<s>", "</s>")) {
            vocabulary.put(special, vocabulary.size());
        }
        for (int b = 0; b < 256; b++) {
            vocabulary.put(String.format("<0x%02X>", b), vocabulary.size());
        }
        for (String piece : "\u2581 a b c d e h i l n o r t w , . \n \u00e9".split(" ")) {
            vocabulary.put(piece, vocabulary.size());
        }
        List<String> merges = new ArrayList<>();
        String[][] pairs = {
            {"\u2581", "h"},
            {"e", "l"},
            {"l", "o"},
            {"\u2581h", "el"},
            {"\u2581hel", "lo"},
            {"\u2581", "w"},
            {"o", "r"},
            {"\u2581w", "or"},
            {"\u2581", "\u2581"}
        };
        for (String[] pair : pairs) {
            merges.add(pair[0] + " " + pair[1]);
            vocabulary.put(pair[0] + pair[1], vocabulary.size());
        }
        Map<String, Object> model = new LinkedHashMap<>();
        model.put("type", "BPE");
        model.put("unk_token", "<unk>");
        model.put("fuse_unk", true);
        model.put("byte_fallback", true);
        model.put("vocab", vocabulary);
        model.put("merges", merges);
        Map<String, Object> normalizer =
                Map.of(
                        "type",
                        "Sequence",
                        "normalizers",
                        List.of(
                                Map.of("type", "Prepend", "prepend", "\u2581"),
                                Map.of(
                                        "type", "Replace",
                                        "pattern", Map.of("String", " "),
                                        "content", "\u2581")));
        return tokenizer(
                List.of(special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")),
                normalizer,
                null,
                decoder,
                model,
                Map.of("truncation", "false"));
    }

    private static HuggingFaceTokenizer tokenizer(
            List<?> added,
            Object normalizer,
            Object splitter,
            Object decoder,
            Object model,
            Map<String, String> options) {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("version", "1.0");
        json.put("added_tokens", added);
        json.put("normalizer", normalizer);
        json.put("pre_tokenizer", splitter);
        json.put("post_processor", null);
        json.put("decoder", decoder);
        json.put("model", model);
        byte[] bytes = new Gson().toJson(json).getBytes(StandardCharsets.UTF_8);
        try {
            return HuggingFaceTokenizer.newInstance(new ByteArrayInputStream(bytes), options);
        } catch (IOException e) {
            throw new AssertionError(e);
        }
    }

    private static Map<String, ?> special(int id, String content) {
        return Map.of(
                "id", id,
                "content", content,
                "single_word", false,
                "lstrip", false,
                "rstrip", false,
                "normalized", false,
                "special", true);
    }

    /** The visible character that byte-level BPE writes for a byte. */
    private static String visible(int b) {
        if (isPrintable(b)) {
            return String.valueOf((char) b);
        }
        int hidden = 0;
        for (int i = 0; i < b; i++) {
            hidden += isPrintable(i) ? 0 : 1;
        }
        return String.valueOf((char) (256 + hidden));
    }

    private static boolean isPrintable(int b) {
        return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
    }
}
