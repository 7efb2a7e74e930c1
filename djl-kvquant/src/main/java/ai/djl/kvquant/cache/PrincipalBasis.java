/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import ai.djl.kvquant.torch.LinearAlgebra;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;

/**
 * The principal axes of a layer's keys before RoPE, over all kv heads: an orthogonal basis in which
 * channels are uncorrelated and descend in variance (the right singular vectors of the centred
 * keys). Neighbours in rank are dealt to the heads in turn, so that the same place of all heads
 * holds the next few of them.
 *
 * @param mean of keys, [channels]
 * @param forward the axis of each place, [places, channels]
 * @param inverse [channels, places]
 * @param latents the keys in the basis, FLOAT32 [places, tokens]
 */
public record PrincipalBasis(float[] mean, float[] forward, float[] inverse, NDArray latents) {

    private static final long PIECE = 2048;

    /**
     * Finds the axes.
     *
     * @param algebra the decomposition
     * @param keys FLOAT32 {@code [tokens, channels]}
     * @param heads kv heads
     * @return the basis, rounded to fp16; latents are attached to the keys' manager
     */
    public static PrincipalBasis of(LinearAlgebra algebra, NDArray keys, int heads) {
        NDArray mean = keys.mean(new int[] {0});
        NDArray centred = keys.sub(mean);
        NDList spectrum = algebra.eigh(covariance(centred));
        int channels = Math.toIntExact(keys.getShape().get(1));
        // Eigenvalues ascend, places descend: rank c * heads + h is place c of head h.
        NDArray axes =
                spectrum.get(1)
                        .flip(1)
                        .reshape(channels, channels / heads, heads)
                        .transpose(2, 1, 0)
                        .reshape(channels, channels);
        NDArray forward = axes.toType(DataType.FLOAT16, false).toType(DataType.FLOAT32, false);
        return new PrincipalBasis(
                mean.toFloatArray(),
                forward.toFloatArray(),
                forward.transpose().toFloatArray(),
                forward.matMul(centred.transpose()));
    }

    /** E[x x'] in double precision, a piece of the tokens at a time. */
    private static NDArray covariance(NDArray centred) {
        long tokens = centred.getShape().get(0);
        long channels = centred.getShape().get(1);
        NDManager manager = centred.getManager();
        NDArray sum = manager.zeros(new Shape(channels, channels), DataType.FLOAT64);
        for (long begin = 0; begin < tokens; begin += PIECE) {
            long end = Math.min(tokens, begin + PIECE);
            try (NDManager scope = manager.newSubManager()) {
                NDArray piece = centred.get(begin + ":" + end);
                piece.attach(scope);
                NDArray wide = piece.toType(DataType.FLOAT64, false);
                sum.addi(wide.transpose().matMul(wide));
            }
        }
        return sum.divi(tokens);
    }

    /**
     * Returns the keys' latent channels.
     *
     * @return a row of values per place
     */
    public float[][] channels() {
        int places = Math.toIntExact(latents.getShape().get(0));
        int tokens = Math.toIntExact(latents.getShape().get(1));
        float[] values = latents.toFloatArray();
        float[][] rows = new float[places][tokens];
        for (int place = 0; place < places; ++place) {
            System.arraycopy(values, place * tokens, rows[place], 0, tokens);
        }
        return rows;
    }
}
