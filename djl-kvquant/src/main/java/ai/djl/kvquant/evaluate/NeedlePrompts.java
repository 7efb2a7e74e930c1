/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.evaluate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;

/**
 * Writes prompts for passkey retrieval: sentences of a filler text, among them one that tells a
 * pass key of five digits, and the beginning of one that repeats it.
 *
 * <p>A prompt depends on its length, depth, trial and the seed alone.
 */
public final class NeedlePrompts {

    /** What is hidden; the key stands for every %s. */
    public static final String NEEDLE = " The pass key is %s. Remember it. %<s is the pass key.";

    /** What the model completes. */
    public static final String ENDING = " So the pass key is";

    /** Sentences that say nothing of interest, to be repeated. */
    public static final String FILLER =
            "The morning train leaves at eight. Some people read, others look out of the window."
                    + " The fields are wet after the rain. A dog runs along the fence. The road"
                    + " turns left at the mill. Nobody is in a hurry.";

    private static final int SMALLEST_KEY = 10_000;
    private static final int LARGEST_KEY = 99_999;

    private final HuggingFaceTokenizer tokenizer;
    private final List<int[]> sentences;
    private final long seed;

    /**
     * Prepares to write prompts.
     *
     * @param tokenizer the model's tokenizer, created without truncation
     * @param filler the text to hide keys in; it is repeated where it is too short
     * @param seed what keys and the filler's beginning are drawn from
     * @throws IllegalArgumentException if the filler has no text
     */
    public NeedlePrompts(HuggingFaceTokenizer tokenizer, String filler, long seed) {
        if (filler.isBlank()) {
            throw new IllegalArgumentException(
                    "The text to hide pass keys in is empty; give some sentences.");
        }
        this.tokenizer = tokenizer;
        this.seed = seed;
        sentences = new ArrayList<>();
        for (String sentence : filler.strip().split("(?<=[.!?])\\s+|\\R+")) {
            if (!sentence.isBlank()) {
                sentences.add(Perplexity.tokenize(tokenizer, " " + sentence.strip()));
            }
        }
    }

    /**
     * Writes a prompt.
     *
     * @param length tokens of prompt and answer, at most
     * @param depth where the key is hidden, 0 to 1
     * @param trial distinguishes prompts of the same length and depth
     * @return the prompt
     * @throws IllegalArgumentException if the length has no room for key and ending, or the depth
     *     is not from 0 to 1
     */
    public NeedlePrompt create(int length, double depth, int trial) {
        if (!(depth >= 0 && depth <= 1)) {
            throw new IllegalArgumentException(
                    "A depth of " + depth + " is outside the text; allowed: 0 to 1.");
        }
        Random random =
                new Random(((seed * 31 + length) * 31 + Double.hashCode(depth)) * 31 + trial);
        // Seeds that differ little begin with numbers that do.
        random.nextLong();
        String key = Integer.toString(random.nextInt(SMALLEST_KEY, LARGEST_KEY + 1));
        int[] needle = Perplexity.tokenize(tokenizer, String.format(NEEDLE, key));
        int[] ending = Perplexity.tokenize(tokenizer, ENDING);
        int answer = Perplexity.tokenize(tokenizer, " " + key).length;
        int room = length - needle.length - ending.length - answer;
        if (room < 0) {
            throw new IllegalArgumentException(
                    "A needle prompt of "
                            + length
                            + " tokens has no room for key and ending; give "
                            + (length - room)
                            + " or more.");
        }
        List<int[]> parts = filler(room, random.nextInt(sentences.size()));
        parts.add(place(parts, depth), needle);
        parts.add(ending);
        int[] tokens = parts.stream().flatMapToInt(IntStream::of).toArray();
        return new NeedlePrompt(tokens, key, answer, length, depth);
    }

    /** Sentences from the given one on, round and round, as long as there is room. */
    private List<int[]> filler(int room, int first) {
        List<int[]> parts = new ArrayList<>();
        int left = room;
        for (int i = first; sentences.get(i).length <= left; i = (i + 1) % sentences.size()) {
            parts.add(sentences.get(i));
            left -= sentences.get(i).length;
        }
        return parts;
    }

    /** The gap between sentences that is nearest to a depth. */
    private static int place(List<int[]> parts, double depth) {
        double wanted = depth * parts.stream().mapToInt(part -> part.length).sum();
        int tokens = 0;
        for (int i = 0; i < parts.size(); ++i) {
            int next = tokens + parts.get(i).length;
            if (next - wanted > wanted - tokens) {
                return i;
            }
            tokens = next;
        }
        return parts.size();
    }
}
