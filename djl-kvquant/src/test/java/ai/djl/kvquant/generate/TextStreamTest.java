/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.Supplier;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class TextStreamTest {

    private static final String TEXT =
            "hello the world,  hello \uD83D\uDE42\uD83D\uDC4D\uD83C\uDFFD \u4F60\u597D\u4F60 "
                    + "caf\u00e9\n  the hello\uD83D\uDE42";

    private enum Kind {
        BYTE_LEVEL(Tokenizers::byteLevel),
        SENTENCE_PIECE(Tokenizers::sentencePiece),
        METASPACE(Tokenizers::metaspace);

        private final Supplier<HuggingFaceTokenizer> tokenizer;

        Kind(Supplier<HuggingFaceTokenizer> tokenizer) {
            this.tokenizer = tokenizer;
        }
    }

    @ParameterizedTest
    @EnumSource(Kind.class)
    void fixturesSplitCharactersOverTokens(Kind kind) {
        try (HuggingFaceTokenizer tokenizer = kind.tokenizer.get()) {
            assertEquals(TEXT, tokenizer.decode(ids(tokenizer, TEXT)));
            int emoji = ids(tokenizer, "\uD83D\uDE42").length;
            assertTrue(emoji >= 3, "the emoji has " + emoji + " tokens");
        }
    }

    @ParameterizedTest
    @EnumSource(Kind.class)
    void piecesAreWholeCharactersAndJoinToTheText(Kind kind) {
        try (HuggingFaceTokenizer tokenizer = kind.tokenizer.get()) {
            List<String> pieces = pieces(tokenizer, new long[0], ids(tokenizer, TEXT));
            assertEquals(TEXT, String.join("", pieces));
            for (String piece : pieces) {
                assertFalse(piece.contains("\uFFFD"), "a broken character in '" + piece + "'");
                assertFalse(
                        !piece.isEmpty() && Character.isLowSurrogate(piece.charAt(0)),
                        "a broken surrogate pair");
            }
        }
    }

    @ParameterizedTest
    @EnumSource(Kind.class)
    void piecesOfRandomTextJoinToItsDecoding(Kind kind) {
        String[] parts = {
            "hello",
            " ",
            "  ",
            "the",
            " world",
            "\n",
            ",",
            "\u4F60",
            "\u597D",
            "\uD83D\uDE42",
            "\u00e9",
            "z",
            "\u00df",
            "</s>",
            "<|end|>",
            "\uFFFD"
        };
        Random random = new Random(7);
        try (HuggingFaceTokenizer tokenizer = kind.tokenizer.get()) {
            for (int i = 0; i < 500; i++) {
                StringBuilder text = new StringBuilder();
                for (int n = random.nextInt(12); n >= 0; n--) {
                    text.append(parts[random.nextInt(parts.length)]);
                }
                long[] ids = ids(tokenizer, text.toString());
                assertEquals(
                        tokenizer.decode(ids, true),
                        String.join("", pieces(tokenizer, new long[0], ids)),
                        () -> "text '" + text + "', ids " + Arrays.toString(ids));
            }
        }
    }

    /** Byte-level tokens in any order, mostly not UTF-8. */
    @Test
    void piecesOfRandomBytesJoinToTheirDecoding() {
        Random random = new Random(11);
        try (HuggingFaceTokenizer tokenizer = Tokenizers.byteLevel()) {
            for (int i = 0; i < 1000; i++) {
                long[] ids = random.longs(1 + random.nextInt(20), 0, 265).toArray();
                assertEquals(
                        tokenizer.decode(ids, true),
                        String.join("", pieces(tokenizer, new long[0], ids)),
                        () -> Arrays.toString(ids));
            }
        }
    }

    @ParameterizedTest
    @EnumSource(Kind.class)
    void continuesAContextWithoutLosingSpaces(Kind kind) {
        try (HuggingFaceTokenizer tokenizer = kind.tokenizer.get()) {
            long[] ids = ids(tokenizer, TEXT);
            for (int cut = 1; cut < ids.length; cut++) {
                long[] context = Arrays.copyOf(ids, cut);
                long[] rest = Arrays.copyOfRange(ids, cut, ids.length);
                String begin = tokenizer.decode(context, true).replaceAll("\uFFFD+$", "");
                assertEquals(
                        TEXT,
                        begin + String.join("", pieces(tokenizer, context, rest)),
                        "cut after " + cut + " tokens");
            }
        }
    }

    @Test
    void givesOutAnIncompleteCharacterAtTheEndOnly() {
        try (HuggingFaceTokenizer tokenizer = Tokenizers.byteLevel()) {
            long[] ids = ids(tokenizer, "a\uD83D\uDE42");
            TextStream stream = new TextStream(tokenizer, true);
            assertEquals("a", stream.add((int) ids[0]));
            assertEquals("", stream.add((int) ids[1]));
            assertEquals("\uFFFD", stream.flush());
            assertEquals("", stream.flush());
        }
    }

    @Test
    void spaceAfterASkippedSpecialTokenIsKept() {
        try (HuggingFaceTokenizer tokenizer = Tokenizers.sentencePiece()) {
            long[] hello = ids(tokenizer, "hello");
            long[] ids = {hello[0], 2, hello[0], 2, 2, hello[0]};
            assertEquals("hello hello hello", tokenizer.decode(ids, true));
            assertEquals(
                    List.of("hello", "", " hello", "", "", " hello", ""),
                    pieces(tokenizer, new long[0], ids));
        }
    }

    private static long[] ids(HuggingFaceTokenizer tokenizer, String text) {
        return tokenizer.encode(text, false, false).getIds();
    }

    private static List<String> pieces(HuggingFaceTokenizer tokenizer, long[] context, long[] ids) {
        int[] before = Arrays.stream(context).mapToInt(Math::toIntExact).toArray();
        TextStream stream = new TextStream(tokenizer, true, before);
        List<String> pieces = new ArrayList<>();
        for (long id : ids) {
            pieces.add(stream.add((int) id));
        }
        pieces.add(stream.flush());
        return pieces;
    }
}
