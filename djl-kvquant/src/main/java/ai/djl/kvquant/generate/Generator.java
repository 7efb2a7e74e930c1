/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.function.BooleanSupplier;

/**
 * Generates text with a {@link LanguageModel}.
 *
 * <p>Prompts are token ids or, with a tokenizer, text. Thread-safe: each call has a KV cache of its
 * own, which is released before the call returns, however it ends. Calls of many threads are
 * decoded together by a generator with a {@link BatchScheduler}.
 *
 * <pre>
 * Generator generator = new Generator(model, tokenizer);
 * GenerationResult result = generator.generate("Once upon a time", config, token -&gt; {
 *     System.out.print(token.text());
 *     return true;
 * });
 * </pre>
 */
public final class Generator {

    private static final GenerationListener SILENT = token -> true;
    private static final String WHOLE_TEXTS = "DO_NOT_TRUNCATE";

    private final LanguageModel model;
    private final BatchScheduler scheduler;
    private final HuggingFaceTokenizer tokenizer;

    /**
     * Creates a generator for programs that work with token ids; results have no text.
     *
     * @param model the model; it stays the caller's
     */
    public Generator(LanguageModel model) {
        this(model, null);
    }

    /**
     * Creates a generator.
     *
     * @param model the model; it stays the caller's
     * @param tokenizer the tokenizer of the model, of {@code Tokenizers.load} or created with
     *     {@code optTruncation(false)}, since DJL cuts texts at 512 tokens otherwise; it stays the
     *     caller's; null: prompts are token ids
     * @throws IllegalArgumentException if the tokenizer cuts texts
     */
    public Generator(LanguageModel model, HuggingFaceTokenizer tokenizer) {
        this.model = model;
        this.scheduler = null;
        this.tokenizer = requireWholeTexts(tokenizer);
    }

    /**
     * Creates a generator whose calls share one running batch with all others of the scheduler.
     *
     * <p>Calls wait where the KV cache has no room for them now. A listener is called by the thread
     * that called the generator, which the others do not wait for.
     *
     * @param scheduler the scheduler; it stays the caller's
     * @param tokenizer the tokenizer of the model, see {@link #Generator(LanguageModel,
     *     HuggingFaceTokenizer)}, or null
     * @throws IllegalArgumentException if the tokenizer cuts texts
     */
    public Generator(BatchScheduler scheduler, HuggingFaceTokenizer tokenizer) {
        this.model = scheduler.model();
        this.scheduler = scheduler;
        this.tokenizer = requireWholeTexts(tokenizer);
    }

    private static HuggingFaceTokenizer requireWholeTexts(HuggingFaceTokenizer tokenizer) {
        if (tokenizer != null && !WHOLE_TEXTS.equals(tokenizer.getTruncation())) {
            throw new IllegalArgumentException(
                    "The tokenizer cuts texts at "
                            + tokenizer.getMaxLength()
                            + " tokens, so that the model would see the beginning of a prompt"
                            + " only; create it with Tokenizers.load(DIRECTORY) or with"
                            + " optTruncation(false).");
        }
        return tokenizer;
    }

    /**
     * Continues a text.
     *
     * @param prompt the text; the tokenizer adds its special tokens (usually one that begins a
     *     text), so a rendered chat template goes through {@link #encode} without them instead
     * @param config how to generate
     * @return the result
     * @throws ai.djl.kvquant.cache.CacheFullException if the prompt does not fit into the KV cache
     */
    public GenerationResult generate(String prompt, GenerationConfig config) {
        return generate(prompt, config, SILENT);
    }

    /**
     * Continues a text and reports each token.
     *
     * @param prompt the text, see {@link #generate(String, GenerationConfig)}
     * @param config how to generate
     * @param listener receives each token
     * @return the result
     * @throws ai.djl.kvquant.cache.CacheFullException if the prompt does not fit into the KV cache
     */
    public GenerationResult generate(
            String prompt, GenerationConfig config, GenerationListener listener) {
        return generate(List.of(encode(prompt, true)), config, listener, new Cancellation()).get(0);
    }

    /**
     * Continues token sequences.
     *
     * @param prompts the token ids of each prompt, of any lengths
     * @param config how to generate
     * @return the results in the order of the prompts
     * @throws ai.djl.kvquant.cache.CacheFullException if the prompts do not fit into the KV cache
     */
    public List<GenerationResult> generate(List<int[]> prompts, GenerationConfig config) {
        return generate(prompts, config, SILENT, new Cancellation());
    }

    /**
     * Continues token sequences, reports each token and can be cancelled.
     *
     * <p>When the KV cache fills up while decoding, no exception is thrown: every sequence that was
     * still running is returned as far as it came, with {@link FinishReason#CACHE_FULL}.
     *
     * @param prompts the token ids of each prompt, of any lengths
     * @param config how to generate
     * @param listener receives each token
     * @param cancellation ends the generation when cancelled
     * @return the results in the order of the prompts
     * @throws IllegalArgumentException if a prompt is empty, too long for the model or has an
     *     unknown token, or if stop strings are asked for without a tokenizer
     * @throws ai.djl.kvquant.cache.CacheFullException if the prompts do not fit into the KV cache
     */
    public List<GenerationResult> generate(
            List<int[]> prompts,
            GenerationConfig config,
            GenerationListener listener,
            Cancellation cancellation) {
        try (GenerationRun loop = loop(prompts, config, listener, cancellation)) {
            boolean running = true;
            while (running) {
                running = loop.advance();
            }
            return loop.results();
        }
    }

    /**
     * Continues texts together.
     *
     * @param prompts the texts, see {@link #generate(String, GenerationConfig)}
     * @param config how to generate
     * @return the results in the order of the prompts
     * @throws ai.djl.kvquant.cache.CacheFullException if the prompts do not fit into the KV cache
     */
    public List<GenerationResult> generateTexts(List<String> prompts, GenerationConfig config) {
        return generate(prompts.stream().map(p -> encode(p, true)).toList(), config);
    }

    /**
     * Continues a token sequence as the caller asks for tokens.
     *
     * @param prompt the token ids
     * @param config how to generate
     * @return the tokens to come; the caller closes it
     */
    public TokenStream stream(int[] prompt, GenerationConfig config) {
        TokenStream.Queue queue = new TokenStream.Queue();
        Cancellation cancellation = new Cancellation();
        return new TokenStream(
                loop(List.of(prompt), config, queue, cancellation), queue, cancellation);
    }

    /**
     * Continues a text as the caller asks for tokens.
     *
     * @param prompt the text, see {@link #generate(String, GenerationConfig)}
     * @param config how to generate
     * @return the tokens to come; the caller closes it
     */
    public TokenStream stream(String prompt, GenerationConfig config) {
        return stream(encode(prompt, true), config);
    }

    /**
     * Continues token sequences without waiting for them: returns at once, and a listener hears of
     * the tokens. Needs a generator with a scheduler.
     *
     * @param prompts the token ids of each prompt, of any lengths
     * @param config how to generate
     * @param listener receives each token, and errors that come later
     * @param cancelled asked now and then whether nobody wants the sequences any more; must not
     *     wait
     * @param maxWait how long a sequence may wait for its first token, after which the listener
     *     receives a {@link WaitTooLongException}; null for any time
     * @throws IllegalArgumentException if a prompt is empty, too long for the model or has an
     *     unknown token, if there are more prompts than may ever wait, or if stop strings are asked
     *     for without a tokenizer
     * @throws TooManyRequestsException if as many requests wait as the scheduler's limits allow
     * @throws IllegalStateException if this generator has no scheduler, or if that is closed
     */
    public void submit(
            List<int[]> prompts,
            GenerationConfig config,
            SubmissionListener listener,
            BooleanSupplier cancelled,
            Duration maxWait) {
        if (scheduler == null) {
            throw new IllegalStateException(
                    "This generator has no scheduler to submit to; create it with one, or call"
                            + " generate.");
        }
        List<int[]> copies = checked(prompts, config);
        new SubmittedRun(scheduler, tokenizer, copies, config, listener, cancelled).submit(maxWait);
    }

    /**
     * Turns a text into token ids.
     *
     * @param text the text
     * @param addSpecialTokens whether the tokenizer adds its special tokens; {@code false} for a
     *     rendered chat template, which has them already
     * @return the token ids
     * @throws IllegalStateException if there is no tokenizer
     */
    public int[] encode(String text, boolean addSpecialTokens) {
        if (tokenizer == null) {
            throw new IllegalStateException(
                    "This generator has no tokenizer; give it one, or give token ids.");
        }
        long[] ids = tokenizer.encode(text, addSpecialTokens, false).getIds();
        int[] tokens = new int[ids.length];
        for (int i = 0; i < ids.length; i++) {
            tokens[i] = Math.toIntExact(ids[i]);
        }
        return tokens;
    }

    private GenerationRun loop(
            List<int[]> prompts,
            GenerationConfig config,
            GenerationListener listener,
            Cancellation cancellation) {
        List<int[]> copies = checked(prompts, config);
        if (scheduler != null) {
            return new ScheduledRun(scheduler, tokenizer, copies, config, listener, cancellation);
        }
        return new DecodingLoop(model, tokenizer, copies, config, listener, cancellation);
    }

    private List<int[]> checked(List<int[]> prompts, GenerationConfig config) {
        if (tokenizer == null && !config.getStopStrings().isEmpty()) {
            throw new IllegalArgumentException(
                    "Stop strings need text, and this generator has no tokenizer; give it one.");
        }
        List<int[]> copies = new ArrayList<>();
        for (int i = 0; i < prompts.size(); i++) {
            String name = prompts.size() == 1 ? "The prompt" : "Prompt " + i;
            check(prompts.get(i), name);
            copies.add(prompts.get(i).clone());
        }
        return copies;
    }

    private void check(int[] prompt, String name) {
        if (prompt.length == 0) {
            throw new IllegalArgumentException(
                    name
                            + " is empty; give at least one token, for example the one that begins"
                            + " a text.");
        }
        int longest = model.contextLength() - 1;
        if (prompt.length > longest) {
            throw new IllegalArgumentException(
                    name
                            + " has "
                            + prompt.length
                            + " tokens, but the model's context of "
                            + model.contextLength()
                            + " tokens leaves room for at most "
                            + longest
                            + " and one new token; shorten it.");
        }
        for (int token : prompt) {
            if (token < 0 || token >= model.vocabularySize()) {
                throw new IllegalArgumentException(
                        name
                                + " has the token "
                                + token
                                + ", but the model's vocabulary goes from"
                                + " 0 to "
                                + (model.vocabularySize() - 1)
                                + "; use the tokenizer that came with the model.");
            }
        }
    }
}
