/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Arrays;
import java.util.List;

/** What a cache takes: bits per element, and bytes of pages. Means are over layers. */
final class CacheAccounting {

    private final CacheGeometry geometry;
    private final CacheOptions options;
    private final List<LayerFormat> layers;
    private final long pageBytes;
    private final long exactPageBytes;

    CacheAccounting(
            CacheGeometry geometry,
            CacheOptions options,
            List<LayerFormat> layers,
            CacheTensors tensors) {
        this.geometry = geometry;
        this.options = options;
        this.layers = List.copyOf(layers);
        this.pageBytes = Arrays.stream(tensors.pageBytes()).sum();
        this.exactPageBytes = Arrays.stream(tensors.exactPageBytes()).sum();
    }

    /** Bytes of a page, over all layers. */
    long pageBytes() {
        return pageBytes;
    }

    /** Bytes of an exact page, over all layers. */
    long exactPageBytes() {
        return exactPageBytes;
    }

    double bytesPerToken() {
        return (double) pageBytes / KvCache.PAGE_TOKENS;
    }

    /** Bytes that sequences hold; what is shared counts in each. */
    long bytes(List<CacheSequence> sequences) {
        long total = 0;
        for (CacheSequence sequence : sequences) {
            total += sequence.pages.size() * (pageBytes + Integer.BYTES);
            total += sequence.exactPages.size() * (exactPageBytes + Integer.BYTES);
            total += sequence.own == null ? 0 : sequence.own.bytes();
        }
        return total;
    }

    /** Whether a sequence gets a basis of its own, which takes fewer bits than fp16. */
    boolean wantsPromptBasis(int tokens) {
        return options.promptBasis()
                && tokens - options.firstSinks() >= schedule().shortestPrompt(geometry.channels());
    }

    private SvdqSchedule schedule() {
        return SvdqSchedule.of(options.dtype().keyBits());
    }

    /** Bits per key element as it is stored in pages. */
    double bitsPerKey() {
        return layers.stream().mapToDouble(LayerFormat::keyBits).average().orElse(0);
    }

    /** The same with the basis of a sequence. */
    double bitsPerKey(int tokens) {
        return bitsPerKey() + basisBitsOf(tokens);
    }

    /** The same with the bases that sequences have, the mean over their tokens. */
    double bitsPerKey(List<CacheSequence> sequences) {
        long tokens = sequences.stream().mapToLong(CacheSequence::length).sum();
        long bases = sequences.stream().filter(sequence -> sequence.own != null).count();
        return bases == 0 ? bitsPerKey() : bitsPerKey() + bases * basisBits() / tokens;
    }

    /** Bits per key element of a sequence with all that is stored for it. */
    double bitsPerKey(int tokens, int recent) {
        double stored =
                layers.stream()
                        .mapToDouble(l -> l.storedBits(l.keys(), tokens, recent))
                        .average()
                        .orElse(0);
        return stored + basisBitsOf(tokens);
    }

    /** Bits per value element as it is stored in pages. */
    double bitsPerValue() {
        return layers.stream().mapToDouble(l -> l.values().effectiveBits()).average().orElse(0);
    }

    /** Bits per value element of a sequence with all that is stored for it. */
    double bitsPerValue(int tokens, int recent) {
        return layers.stream()
                .mapToDouble(l -> l.storedBits(l.values(), tokens, recent))
                .average()
                .orElse(0);
    }

    /** What a decoding step reads of the keys of a sequence, in bits per key element. */
    KeyReads keyReads(int tokens, boolean ownBasis) {
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

    /** What the basis of a sequence adds to each of its key elements, if it has one. */
    private double basisBitsOf(int tokens) {
        return wantsPromptBasis(tokens) ? basisBits() / tokens : 0;
    }

    /** Bits of a sequence's own bases, per layer and channel. */
    private double basisBits() {
        long layersWith = layers.stream().filter(layer -> layer.keys().isQuantized()).count();
        double share = (double) layersWith / layers.size();
        return share * schedule().basisBits(geometry.channels()) / geometry.channels();
    }
}
