/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import ai.djl.kvquant.torch.LinearAlgebra;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;

/**
 * Gives a sequence a basis of its own, found from the keys of its prompt layer by layer, before
 * anything is appended: mean, principal axes, and for each latent channel the range that its codes
 * cover. Tokens that are generated later are stored in the same basis.
 */
public final class PromptBasis implements AutoCloseable {

    private final KvCache cache;
    private final CacheSequence sequence;
    private final SvdqSchedule schedule;
    private final NDManager manager;
    private final LinearAlgebra algebra;

    /**
     * Prepares a sequence.
     *
     * @param cache a cache for which {@link KvCache#wantsPromptBasis} holds
     * @param sequence a sequence of it, still empty
     */
    public PromptBasis(KvCache cache, CacheSequence sequence) {
        this.cache = cache;
        this.sequence = sequence;
        schedule = SvdqSchedule.of(cache.options().dtype().keyBits());
        sequence.own = cache.tensors().newParams();
        manager = cache.tensors().newManager();
        algebra = new LinearAlgebra(manager);
    }

    /**
     * Finds the basis of a layer. Sinks, which are not stored as codes, do not count.
     *
     * @param layer the number of the layer
     * @param keys the prompt's keys before RoPE, FLOAT32 {@code [tokens, channels]}
     */
    public void fit(int layer, NDArray keys) {
        LayerFormat format = cache.layer(layer);
        if (!format.keys().isQuantized()) {
            return;
        }
        NDArray coded = keys.get(cache.options().firstSinks() + ":");
        int heads = cache.geometry().numKvHeads();
        PrincipalBasis basis = PrincipalBasis.of(algebra, coded, heads);
        StaticFormat own =
                new StaticFormat(
                        true,
                        basis.mean(),
                        null,
                        ranges(basis.latents()),
                        schedule.widths(),
                        new StaticFormat.Basis(heads, basis.forward(), basis.inverse()),
                        null,
                        null);
        sequence.own.set(layer, cache.tensors().pack(manager, format.withKeys(own)));
    }

    /** Start and step of each place: its codes reach from the least value to the largest. */
    private float[] ranges(NDArray latents) {
        int[] widths = schedule.widths();
        int headDim = cache.geometry().headDim();
        float[] low = latents.min(new int[] {1}).toFloatArray();
        float[] high = latents.max(new int[] {1}).toFloatArray();
        float[] steps = new float[2 * low.length];
        for (int place = 0; place < low.length; ++place) {
            int width = widths[place % headDim * widths.length / headDim];
            float range = high[place] - low[place];
            steps[2 * place] = width > 0 ? low[place] : 0;
            steps[2 * place + 1] = width > 0 && range > 0 ? range / ((1 << width) - 1) : 1;
        }
        return steps;
    }

    /** Frees what was needed for finding; the sequence keeps what was found. */
    @Override
    public void close() {
        manager.close();
    }
}
