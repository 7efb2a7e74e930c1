/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.util.Arrays;
import java.util.function.Function;

/**
 * Turns token ids into text piece by piece.
 *
 * <p>A token alone has no text of its own: byte-level tokenizers split a character over several
 * tokens, SentencePiece-style ones drop the space in front of the first token that they decode. So
 * each piece is the difference between two decodings of a small window: the tokens already given
 * out, and these with the new ones. While the window ends with an incomplete character (U+FFFD)
 * nothing is given out. The pieces, joined, are what decoding all tokens at once gives.
 *
 * <p>Not thread-safe; one stream per sequence.
 */
public final class TextStream {

    private static final char INCOMPLETE = '\uFFFD';

    /**
     * Held tokens after which an incomplete character is given out as it is. A character takes at
     * most four tokens, so this happens for text that is not UTF-8 only, and keeps its cost linear.
     */
    private static final int MAX_HELD = 64;

    /** How many tokens of a prompt are decoded to know how the text goes on. */
    private static final int CONTEXT = 8;

    /** The same where every character is several tokens. */
    private static final int MAX_CONTEXT = 256;

    private final Function<long[], String> decoder;
    private long[] window = new long[16];
    private int size;
    private int given;
    private String givenText = "";
    private boolean cleanCut = true;

    /**
     * Creates a stream that starts a text.
     *
     * @param tokenizer the tokenizer; it stays the caller's
     * @param skipSpecialTokens whether special tokens have no text
     */
    public TextStream(HuggingFaceTokenizer tokenizer, boolean skipSpecialTokens) {
        this(tokenizer, skipSpecialTokens, new int[0]);
    }

    /**
     * Creates a stream that continues a text, so that a space between the two is kept.
     *
     * @param tokenizer the tokenizer; it stays the caller's
     * @param skipSpecialTokens whether special tokens have no text
     * @param context the tokens before the first one; they give no piece
     */
    public TextStream(HuggingFaceTokenizer tokenizer, boolean skipSpecialTokens, int[] context) {
        this(ids -> tokenizer.decode(ids, skipSpecialTokens), context);
    }

    TextStream(Function<long[], String> decoder, int[] context) {
        this.decoder = decoder;
        if (context.length > 0) {
            begin(context);
        }
    }

    private void begin(int[] context) {
        int start = Math.max(0, context.length - CONTEXT);
        int earliest = Math.max(0, context.length - MAX_CONTEXT);
        while (start > earliest && startsInsideCharacter(context[start])) {
            start--;
        }
        for (int i = start; i < context.length; i++) {
            push(context[i]);
        }
        givenText = decode(0);
        given = size;
        // A character that the context leaves open belongs to the first piece.
        while (endsIncomplete(givenText)) {
            cleanCut = false;
            givenText = givenText.substring(0, givenText.length() - 1);
        }
    }

    /** Says yes also for some tokens that end inside a character; an earlier one is found then. */
    private boolean startsInsideCharacter(int id) {
        return decoder.apply(new long[] {id}).indexOf(INCOMPLETE) >= 0;
    }

    /**
     * Appends a token.
     *
     * @param id the token id
     * @return the text that became certain, possibly empty
     */
    public String add(int id) {
        push(id);
        String text = decode(0);
        if (endsIncomplete(text) && size - given < MAX_HELD) {
            return "";
        }
        return give(text);
    }

    /**
     * Ends the text.
     *
     * @return what was held back, possibly empty; an incomplete character is U+FFFD
     */
    public String flush() {
        return size == given ? "" : give(decode(0));
    }

    private String give(String text) {
        String piece = text.substring(Math.min(givenText.length(), text.length()));
        // The window is to start at the tokens just given out, which must start with a character
        // and have text of their own, or the decoder would take what follows for the start of a
        // text.
        String last = given == size || !cleanCut ? "" : decode(given);
        if (!last.isEmpty()) {
            System.arraycopy(window, given, window, 0, size - given);
            size -= given;
            text = last;
        }
        given = size;
        givenText = text;
        cleanCut = !endsIncomplete(text);
        return piece;
    }

    private static boolean endsIncomplete(String text) {
        return !text.isEmpty() && text.charAt(text.length() - 1) == INCOMPLETE;
    }

    private void push(int id) {
        if (size == window.length) {
            window = Arrays.copyOf(window, 2 * size);
        }
        window[size++] = id;
    }

    private String decode(int from) {
        return decoder.apply(Arrays.copyOfRange(window, from, size));
    }
}
