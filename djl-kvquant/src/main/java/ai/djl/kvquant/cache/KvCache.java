/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
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

    private final NDManager manager;
    private final Operators operators;
    private final CacheGeometry geometry;
    private final CacheOptions options;
    private final List<LayerFormat> layers = new ArrayList<>();
    private final NDList params = new NDList();
    private final NDList pages = new NDList();
    private final NDList exact = new NDList();
    private final NDArray rope;
    private final PagePool pagePool;
    private final PagePool exactPool;
    private final PrefixCache prefixes;
    private final int window;
    private final int smallestWindow;
    private final int sinkPages;
    private final long pageBytes;
    private final long exactPageBytes;
    private final long capacity;

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
        this.operators = operators;
        this.geometry = geometry;
        this.options = options;
        options.requireFits(geometry);
        for (int i = 0; i < geometry.numLayers(); ++i) {
            layers.add(LayerFormat.of(geometry, options, i));
        }
        window = layers.stream().mapToInt(LayerFormat::window).max().orElse(0);
        smallestWindow = layers.stream().mapToInt(LayerFormat::window).min().orElse(0);
        sinkPages = layers.stream().mapToInt(LayerFormat::sinkPages).max().orElse(0);
        manager = parent.newSubManager();
        try {
            rope = RopeTable.create(manager, geometry);
            long[] pageSizes = new long[layers.size()];
            long[] exactSizes = new long[layers.size()];
            for (int i = 0; i < layers.size(); ++i) {
                params.add(pack(manager, layers.get(i)));
                long[] sizes = operators.layout(params.get(i));
                pageSizes[i] = sizes[0];
                exactSizes[i] = layers.get(i).hasExactPages() ? sizes[1] : 0;
            }
            pageBytes = sum(pageSizes);
            exactPageBytes = sum(exactSizes);
            CacheSize size =
                    new CacheSize(
                            geometry, options.size(), pageBytes, exactColumns() * exactPageBytes);
            capacity = size.tokens();
            pagePool = new PagePool(size.pages());
            exactPool = new PagePool(exactColumns() == 0 ? 0 : size.sequences() * exactColumns());
            for (int i = 0; i < layers.size(); ++i) {
                pages.add(pool(pagePool.size(), pageSizes[i]));
                exact.add(pool(Math.max(1, exactPool.size()), Math.max(1, exactSizes[i])));
            }
            prefixes = new PrefixCache(this);
        } catch (RuntimeException | Error e) {
            manager.close();
            throw e;
        }
    }

    private static long sum(long[] values) {
        long total = 0;
        for (long value : values) {
            total += value;
        }
        return total;
    }

    NDArray pack(NDManager owner, LayerFormat layer) {
        java.nio.ByteBuffer bytes = layer.pack(geometry);
        return owner.create(bytes, new Shape(bytes.remaining()), DataType.UINT8);
    }

    private NDArray pool(long rows, long bytes) {
        return manager.create(new Shape(rows, bytes), DataType.UINT8);
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
        return options.promptBasis()
                && tokens - options.firstSinks() >= schedule().shortestPrompt(geometry.channels());
    }

    private SvdqSchedule schedule() {
        return SvdqSchedule.of(options.dtype().keyBits());
    }

    /**
     * Returns the tokens that fit into the cache, over all sequences.
     *
     * @return the number of tokens
     */
    public long capacity() {
        return capacity;
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
        return layers.stream().mapToDouble(LayerFormat::keyBits).average().orElse(0);
    }

    /**
     * Returns the bits per key element of a sequence, a basis of its own included.
     *
     * @param tokens the tokens of the sequence
     * @return the effective bits
     */
    public double bitsPerKey(int tokens) {
        return wantsPromptBasis(tokens) ? bitsPerKey() + basisBits() / tokens : bitsPerKey();
    }

    /**
     * Returns the bits per key element of sequences, bases of their own included.
     *
     * @param sequences the sequences
     * @return the effective bits, the mean over tokens
     */
    public double bitsPerKey(List<CacheSequence> sequences) {
        long tokens = sequences.stream().mapToLong(CacheSequence::length).sum();
        long bases = sequences.stream().filter(sequence -> sequence.own != null).count();
        return bases == 0 ? bitsPerKey() : bitsPerKey() + bases * basisBits() / tokens;
    }

    /**
     * Returns what a decoding step reads of the keys of a sequence whose prompt is all of it; the
     * mean over layers.
     *
     * @param tokens the tokens of the sequence
     * @return bits per key element
     */
    public KeyReads keyReads(int tokens) {
        return keyReads(tokens, wantsPromptBasis(tokens));
    }

    /**
     * Returns what the next decoding step reads of the keys of a sequence; the mean over layers.
     *
     * @param sequence the sequence, not empty
     * @return bits per key element
     */
    public KeyReads keyReads(CacheSequence sequence) {
        return keyReads(sequence.length(), sequence.own != null);
    }

    private KeyReads keyReads(int tokens, boolean ownBasis) {
        double codes = 0;
        double exact = 0;
        double landmarks = 0;
        for (LayerFormat layer : layers) {
            long recent = Math.min(layer.window(), tokens);
            KeySparsity sparsity = new KeySparsity(layer.sparseTokens());
            codes += layer.keys().effectiveBits() * sparsity.tokensRead(tokens - recent);
            exact += 16.0 * (recent + Math.min(layer.maxSinks(), tokens - recent));
            landmarks += sparsity.landmarkBits(tokens - recent);
        }
        double all = (double) tokens * layers.size();
        double basis = ownBasis ? basisBits() / tokens : 0;
        return new KeyReads(codes / all, exact / all, landmarks / all, basis);
    }

    /** Bits of a sequence's own bases, per layer and channel. */
    private double basisBits() {
        long layersWith = layers.stream().filter(layer -> layer.keys().isQuantized()).count();
        double share = (double) layersWith / layers.size();
        return share * schedule().basisBits(geometry.channels()) / geometry.channels();
    }

    /**
     * Returns the bits per value element, scales and zeros included, sinks and window not; the mean
     * over layers.
     *
     * @return the effective bits
     */
    public double bitsPerValue() {
        return layers.stream().mapToDouble(l -> l.values().effectiveBits()).average().orElse(0);
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
        double stored =
                layers.stream()
                        .mapToDouble(l -> l.storedBits(l.keys(), tokens, recent))
                        .average()
                        .orElse(0);
        return wantsPromptBasis(tokens) ? stored + basisBits() / tokens : stored;
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
        return layers.stream()
                .mapToDouble(l -> l.storedBits(l.values(), tokens, recent))
                .average()
                .orElse(0);
    }

    /**
     * Returns the bytes that one more token takes in pages, over all layers.
     *
     * @return bytes per token
     */
    public double bytesPerToken() {
        return (double) pageBytes / PAGE_TOKENS;
    }

    /**
     * Returns the bytes that sequences hold: their pages, exact pages, table rows and bases of
     * their own; what is shared counts in each.
     *
     * @param sequences the sequences
     * @return the bytes
     */
    public long bytes(List<CacheSequence> sequences) {
        long total = 0;
        for (CacheSequence sequence : sequences) {
            total += sequence.pages.size() * (pageBytes + Integer.BYTES);
            total += sequence.exactPages.size() * (exactPageBytes + Integer.BYTES);
            total += sequence.own == null ? 0 : sequence.own.bytes();
        }
        return total;
    }

    /**
     * Returns the recent tokens that are read exactly.
     *
     * @return the window, in tokens
     */
    public int window() {
        return window;
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
        if (!hasScoreBias()) {
            return 0;
        }
        int length = sequence.length();
        return window == 0
                ? length
                : Math.max(0, Math.max(length - window, Math.min(sequence.exactFrom, length)));
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
        return List.of(pages, exact, params);
    }

    /**
     * Returns RoPE's table.
     *
     * @return FLOAT32 {@code [64 + n, 2, headDim / 2]}
     */
    public NDArray rope() {
        return rope;
    }

    /** Exact pages of a sequence: sink pages, then the ring of window pages. */
    int exactColumns() {
        return sinkPages + ring();
    }

    int sinkPages() {
        return sinkPages;
    }

    int ring() {
        if (window == 0) {
            return 0;
        }
        int rollback = Math.min(options.exact().rollback(), geometry.maxTokens());
        return (window + rollback + EXACT_TOKENS - 1) / EXACT_TOKENS + 1;
    }

    /**
     * Tokens of a sequence that are stored in pages once it has the given length, in the layer that
     * stores most.
     */
    int stored(CacheSequence sequence, int length) {
        return smallestWindow == 0
                ? length
                : Math.max(
                        0, Math.max(length - smallestWindow, Math.min(sequence.exactFrom, length)));
    }

    synchronized CacheSequence fork(CacheSequence parent) {
        parent.checkOpen();
        CacheSequence child =
                new CacheSequence(
                        this, parent.tokens.copy(), parent.pages.copy(), parent.exactPages.copy());
        child.exactFrom = parent.exactFrom;
        child.truncated = parent.truncated;
        child.own = parent.own;
        if (child.own != null) {
            child.own.retain();
        }
        for (int i = 0; i < child.pages.size(); ++i) {
            pagePool.retain(child.pages.get(i));
        }
        for (int i = 0; i < child.exactPages.size(); ++i) {
            exactPool.retain(child.exactPages.get(i));
        }
        return child;
    }

    synchronized void truncate(CacheSequence sequence, int length) {
        sequence.checkOpen();
        if (length == sequence.length()) {
            return;
        }
        if (window() > 0) {
            // The ring still holds this many tokens before the present length.
            int held = (ring() - 1) * EXACT_TOKENS;
            sequence.exactFrom =
                    Math.min(length, Math.max(sequence.exactFrom, sequence.length() - held));
        }
        sequence.truncated = true;
        sequence.tokens.truncate(length);
        int needed = pagesFor(stored(sequence, length));
        while (sequence.pages.size() > needed) {
            pagePool.release(sequence.pages.get(sequence.pages.size() - 1));
            sequence.pages.truncate(sequence.pages.size() - 1);
        }
    }

    synchronized void release(CacheSequence sequence) {
        if (sequence.isClosed()) {
            return;
        }
        sequence.markClosed();
        if (sequence.own != null) {
            sequence.own.release();
        }
        for (int i = 0; i < sequence.pages.size(); ++i) {
            pagePool.release(sequence.pages.get(i));
        }
        for (int i = 0; i < sequence.exactPages.size(); ++i) {
            exactPool.release(sequence.exactPages.get(i));
        }
        sequence.pages.truncate(0);
        sequence.exactPages.truncate(0);
    }

    static int pagesFor(int tokens) {
        return (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS;
    }

    /**
     * Refuses a prompt that no eviction makes room for.
     *
     * @param tokens the tokens of the prompt
     * @throws CacheFullException if the whole cache is too small for them
     */
    public void requireRoom(int tokens) {
        if (pagesFor(tokens - smallestWindow) > pagePool.size()) {
            throw new CacheFullException(
                    "A prompt of "
                            + tokens
                            + " tokens does not fit into a KV cache of "
                            + capacity
                            + " tokens. Set kv_cache_tokens or kv_cache_memory higher, or shorten"
                            + " the prompt.");
        }
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

    /** Copies pages, or exact pages, in every layer. */
    void copyPages(boolean exactPages, IntArray sources, IntArray targets) {
        if (sources.size() > 0) {
            NDList pools = exactPages ? exact : pages;
            operators.copyRows(pools, sources.toArray(), targets.toArray());
        }
    }

    /** Packed parameters of the layers for a sequence. */
    NDList params(CacheSequence sequence) {
        return sequence.own == null ? params : sequence.own.layers;
    }

    SequenceParams newParams() {
        return new SequenceParams(manager, params);
    }

    NDManager newManager() {
        return manager.newSubManager();
    }

    LayerFormat layer(int layer) {
        return layers.get(layer);
    }

    PagePool pagePool() {
        return pagePool;
    }

    PagePool exactPool() {
        return exactPool;
    }

    PrefixCache prefixes() {
        return prefixes;
    }

    /** After a successful append. */
    synchronized void commit(CacheSequence sequence, int[] tokens) {
        sequence.tokens.addAll(tokens);
        sequence.truncated = false;
    }

    /** Frees the memory; sequences must not be used any more. */
    @Override
    public void close() {
        manager.close();
    }
}
