/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.List;

/**
 * The KV cache of a model: page pools, packed parameters and the sequences that use them;
 * thread-safe.
 *
 * <p>Per layer, {@code pages} is UINT8 {@code [pages, pageBytes]}, 64 tokens of all kv heads a
 * page, and {@code exact} UINT8 {@code [exactPages, exactPageBytes]}, 16 tokens in fp16. A page
 * number means the same tokens in every layer, so that one page table serves all. The pools are
 * sized once; the operating system commits their memory as pages are first used.
 */
public final class KvCache implements AutoCloseable {

    /** Tokens of a page. */
    public static final int PAGE_TOKENS = 64;

    static final int EXACT_TOKENS = 16;
    static final int MASSIVE_ENTRIES = 20;

    private final CacheGeometry geometry;
    private final CacheOptions options;
    private final List<LayerFormat> layers = new ArrayList<>();
    private final CacheTensors tensors;
    private final PrefixCache prefixes;
    private final TokenLayout layout;
    private final SequencePages sequencePages;
    private final CacheAccounting accounting;
    private final MemoryBudget memory;

    /**
     * Creates a cache.
     *
     * @param parent a manager of the PyTorch engine on the cache's device
     * @param operators the operators
     * @param geometry the model's sizes
     * @param options the cache options
     * @throws IllegalArgumentException if the options do not fit the model or the memory
     */
    public KvCache(
            NDManager parent, Operators operators, CacheGeometry geometry, CacheOptions options) {
        this(parent, operators, geometry, options, Float.SIZE, 0);
    }

    /**
     * Creates a cache that leaves room for what the model computes with.
     *
     * @param parent a manager of the PyTorch engine on the cache's device
     * @param operators the operators
     * @param geometry the model's sizes
     * @param options the cache options
     * @param autoBits bits per element where the data type is auto: those in which is computed
     * @param reserved bytes of the device that a cache of default size leaves free
     * @throws IllegalArgumentException if the options do not fit the model or the memory
     */
    public KvCache(
            NDManager parent,
            Operators operators,
            CacheGeometry geometry,
            CacheOptions options,
            int autoBits,
            long reserved) {
        this.geometry = geometry;
        this.options = options;
        options.requireFits(geometry);
        for (int i = 0; i < geometry.numLayers(); ++i) {
            layers.add(LayerFormat.of(geometry, options, i, autoBits));
        }
        int rollback = Math.min(options.exact().rollback(), geometry.maxTokens());
        layout = new TokenLayout(layers, rollback);
        tensors = new CacheTensors(parent, operators, geometry, layers);
        try {
            accounting = new CacheAccounting(geometry, options, layers, tensors);
            memory = MemoryBudget.of(operators, reserved);
            CacheSize size = sizeOf(options.size(), memory);
            sequencePages = new SequencePages(layout, size);
            tensors.allocate(sequencePages.pagePool().size(), sequencePages.exactPool().size());
            prefixes = new PrefixCache(this);
        } catch (RuntimeException | Error e) {
            tensors.close();
            throw e;
        }
    }

    private CacheSize sizeOf(SizeOptions size, MemoryBudget budget) {
        long exactBytes = layout.exactColumns() * accounting.exactPageBytes();
        return new CacheSize(geometry, size, budget, accounting.pageBytes(), exactBytes);
    }

    /**
     * Returns the bytes of a cache like this one with room for some sequences.
     *
     * @param batch the number of sequences, also its max_batch_size
     * @param tokens the tokens of each
     * @return the bytes of its pages and exact pages
     */
    public long bytesFor(int batch, int tokens) {
        SizeOptions size = new SizeOptions(batch, (long) batch * tokens, 0);
        return sizeOf(size, memory.unlimited()).bytes();
    }

    /**
     * Returns a new, empty sequence.
     *
     * @return the sequence; the caller closes it
     */
    public CacheSequence newSequence() {
        return new CacheSequence(this);
    }

    /**
     * Returns a sequence that begins as a prompt does, forked from the sequence still held that has
     * most tokens in common with it; empty if there is none. Left to be computed are at least the
     * prompt's last token and, after a cut beyond the rollback slack, the window before it.
     *
     * @param prompt the prompt's token ids
     * @return the sequence; the caller closes it
     */
    public CacheSequence sequenceFor(int[] prompt) {
        return options.promptBasis() ? newSequence() : prefixes.fork(prompt);
    }

    /**
     * Takes a sequence whose generation has ended: it is kept as a prefix of later prompts until
     * its pages are needed.
     *
     * @param sequence the sequence, which the caller does not use any more
     */
    public void retire(CacheSequence sequence) {
        if (options.promptBasis()) {
            sequence.close();
        } else {
            prefixes.add(sequence);
        }
    }

    /**
     * Tells whether a sequence gets a basis of its own: with kv_basis=prompt, from the length on
     * where that takes fewer bits than fp16.
     *
     * @param tokens the tokens of its prompt
     * @return whether {@link PromptBasis} is to be used before it is appended to
     */
    public boolean wantsPromptBasis(int tokens) {
        return accounting.wantsPromptBasis(tokens);
    }

    /**
     * Returns the tokens that fit into the cache, over all sequences.
     *
     * @return the number of tokens
     */
    public long capacity() {
        return sequencePages.capacity();
    }

    /**
     * Returns the options of this cache.
     *
     * @return the options
     */
    public CacheOptions options() {
        return options;
    }

    /**
     * Returns the model's sizes.
     *
     * @return the sizes
     */
    public CacheGeometry geometry() {
        return geometry;
    }

    /**
     * Returns the bits per key element, scales, zeros and landmarks included, sinks and window not;
     * the mean over layers.
     *
     * @return the effective bits
     */
    public double bitsPerKey() {
        return accounting.bitsPerKey();
    }

    /**
     * Returns the bits per key element of a sequence, a basis of its own included.
     *
     * @param tokens the tokens of the sequence
     * @return the effective bits
     */
    public double bitsPerKey(int tokens) {
        return accounting.bitsPerKey(tokens);
    }

    /**
     * Returns the bits per key element of sequences, bases of their own included.
     *
     * @param sequences the sequences
     * @return the effective bits, the mean over tokens
     */
    public double bitsPerKey(List<CacheSequence> sequences) {
        return accounting.bitsPerKey(sequences);
    }

    /**
     * Returns what a decoding step reads of the keys of a sequence whose prompt is all of it; the
     * mean over layers.
     *
     * @param tokens the tokens of the sequence
     * @return bits per key element
     */
    public KeyReads keyReads(int tokens) {
        return accounting.keyReads(tokens, wantsPromptBasis(tokens));
    }

    /**
     * Returns what the next decoding step reads of the keys of a sequence; the mean over layers.
     *
     * @param sequence the sequence, not empty
     * @return bits per key element
     */
    public KeyReads keyReads(CacheSequence sequence) {
        return accounting.keyReads(sequence.length(), sequence.own != null);
    }

    /**
     * Returns the bits per value element, scales and zeros included, sinks and window not; the mean
     * over layers.
     *
     * @return the effective bits
     */
    public double bitsPerValue() {
        return accounting.bitsPerValue();
    }

    /**
     * Returns the bits per key element of a sequence with all that is stored for it: sinks, window,
     * and a basis of its own; the mean over layers.
     *
     * @param tokens the sequence's length
     * @param recent recent tokens that are kept exactly
     * @return the effective bits
     */
    public double bitsPerKey(int tokens, int recent) {
        return accounting.bitsPerKey(tokens, recent);
    }

    /**
     * Returns the bits per value element of a sequence with all that is stored for it, sinks and
     * window included; the mean over layers.
     *
     * @param tokens the sequence's length
     * @param recent recent tokens that are kept exactly
     * @return the effective bits
     */
    public double bitsPerValue(int tokens, int recent) {
        return accounting.bitsPerValue(tokens, recent);
    }

    /**
     * Returns the bytes that one more token takes in pages, over all layers.
     *
     * @return bytes per token
     */
    public double bytesPerToken() {
        return accounting.bytesPerToken();
    }

    /**
     * Returns the bytes that sequences hold: their pages, exact pages, table rows and bases of
     * their own; what is shared counts in each.
     *
     * @param sequences the sequences
     * @return the bytes
     */
    public long bytes(List<CacheSequence> sequences) {
        return accounting.bytes(sequences);
    }

    /**
     * Returns the recent tokens that are read exactly.
     *
     * @return the window, in tokens
     */
    public int window() {
        return layout.window();
    }

    /**
     * Tells whether scores of stored keys have a bias (score_bias.h).
     *
     * @return whether any layer's have
     */
    public boolean hasScoreBias() {
        return layers.stream().anyMatch(layer -> layer.keys().hasScoreBias());
    }

    /**
     * Returns the first of a sequence's tokens whose scores have a bias.
     *
     * @param sequence the sequence
     * @return the token
     */
    public int biasedFrom(CacheSequence sequence) {
        return hasScoreBias() ? Math.min(options.firstSinks(), biasedTo(sequence)) : 0;
    }

    /**
     * Returns the end of a sequence's tokens whose scores have a bias: those that are read from
     * pages.
     *
     * @param sequence the sequence
     * @return the first token behind them
     */
    public int biasedTo(CacheSequence sequence) {
        return hasScoreBias() ? layout.storedBehindWindow(sequence) : 0;
    }

    /**
     * Tells whether the layers' inputs are searched for massive activations during prefill.
     *
     * @return true if so
     */
    public boolean wantsMassiveEntries() {
        return layers.stream().anyMatch(l -> l.sinkPolicy() == SinkPolicy.MASSIVE);
    }

    /**
     * Returns the state that the operators work on, in the order of their arguments.
     *
     * @return pages, exact pages and packed parameters, one tensor per layer each
     */
    public List<NDList> pools() {
        return tensors.pools();
    }

    /**
     * Returns RoPE's table.
     *
     * @return FLOAT32 {@code [64 + n, 2, headDim / 2]}
     */
    public NDArray rope() {
        return tensors.rope();
    }

    synchronized CacheSequence fork(CacheSequence parent) {
        parent.checkOpen();
        CacheSequence child =
                new CacheSequence(
                        this, parent.tokens.copy(), parent.pages.copy(), parent.exactPages.copy());
        sequencePages.share(parent, child);
        return child;
    }

    synchronized void truncate(CacheSequence sequence, int length) {
        sequence.checkOpen();
        sequencePages.truncate(sequence, length);
    }

    synchronized void release(CacheSequence sequence) {
        if (!sequence.isClosed()) {
            sequence.markClosed();
            sequencePages.release(sequence);
        }
    }

    /**
     * Refuses a prompt that no eviction makes room for.
     *
     * @param tokens the tokens of the prompt
     * @throws CacheFullException if the whole cache is too small for them
     */
    public void requireRoom(int tokens) {
        sequencePages.requireRoom(tokens);
    }

    /** Gives every sequence pages of its own for what an append will write. */
    synchronized void reserve(List<CacheSequence> sequences, int[] counts, boolean prefill) {
        sequences.forEach(CacheSequence::checkOpen);
        try (PageReservation reservation = new PageReservation(this, prefill)) {
            for (int i = 0; i < counts.length; ++i) {
                reservation.reserve(sequences.get(i), counts[i]);
            }
        }
    }

    /** After a failed append; see {@link CacheBatch#rollBack}. */
    synchronized void rollBack(CacheSequence sequence, int length) {
        if (!sequence.isClosed() && !sequence.damaged) {
            sequencePages.rollBack(sequence, length);
        }
    }

    CacheTensors tensors() {
        return tensors;
    }

    TokenLayout layout() {
        return layout;
    }

    SequencePages sequencePages() {
        return sequencePages;
    }

    LayerFormat layer(int layer) {
        return layers.get(layer);
    }

    PrefixCache prefixes() {
        return prefixes;
    }

    /** After a successful append. */
    synchronized void commit(CacheSequence sequence, int[] tokens) {
        sequence.tokens.addAll(tokens);
        sequence.truncated = false;
        sequence.reach = sequence.length();
    }

    /** Frees the memory; sequences must not be used any more. */
    @Override
    public void close() {
        tensors.close();
    }
}
