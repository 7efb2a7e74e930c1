/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * The sizes of a model that its KV cache depends on.
 *
 * @param numLayers the number of layers
 * @param numHeads query heads of a layer
 * @param numKvHeads key and value heads of a layer; divides numHeads
 * @param headDim channels of a head
 * @param scoreScale the factor of q . k, RoPE's attention factor included
 * @param inverseFrequencies RoPE's angle per position for each pair of channels, headDim / 2 values
 * @param maxTokens the longest sequence
 */
public record CacheGeometry(
        int numLayers,
        int numHeads,
        int numKvHeads,
        int headDim,
        double scoreScale,
        double[] inverseFrequencies,
        int maxTokens) {

    private static final int MAX_ROTATION_HEADS = 4;

    /**
     * Returns the channels of a layer's keys.
     *
     * @return numKvHeads times headDim
     */
    public int channels() {
        return numKvHeads * headDim;
    }

    /**
     * Returns what keys and values take at 16 bits per element.
     *
     * @return bytes per token, over all layers
     */
    public long fp16BytesPerToken() {
        return 4L * channels() * numLayers;
    }

    /**
     * Returns the kv heads whose keys RotateKV rotates together: the largest divisor of their
     * number that is at most 4.
     *
     * @return the number of heads
     */
    public int rotationHeads() {
        int heads = MAX_ROTATION_HEADS;
        while (numKvHeads % heads != 0) {
            --heads;
        }
        return heads;
    }
}
