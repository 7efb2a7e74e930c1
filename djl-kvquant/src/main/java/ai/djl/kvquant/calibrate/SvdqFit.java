/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.cache.PrincipalBasis;
import ai.djl.kvquant.cache.SvdqSchedule;
import ai.djl.kvquant.torch.LinearAlgebra;
import ai.djl.ndarray.NDArray;
import java.util.stream.IntStream;

/**
 * SVDq with a basis found offline: the principal axes of a layer's keys before RoPE, and a
 * prescribed width for each.
 *
 * @param schedule the widths
 */
record SvdqFit(SvdqSchedule schedule) implements KeyFit {

    @Override
    public void write(Calibration.Builder out, int layer, LayerSamples samples) {
        int channels = samples.geometry().channels();
        int headDim = samples.geometry().headDim();
        NDArray keys = samples.keys().reshape(-1, channels);
        try (LinearAlgebra algebra = new LinearAlgebra(keys.getManager())) {
            PrincipalBasis basis =
                    PrincipalBasis.of(algebra, keys, samples.geometry().numKvHeads());
            float[][] latents = basis.channels();
            int[] widths = schedule.widths();
            float[] steps = new float[2 * channels];
            IntStream.range(0, channels)
                    .parallel()
                    .forEach(
                            place -> {
                                int run = place % headDim * widths.length / headDim;
                                UniformQuantizer fitted =
                                        UniformQuantizer.fit(latents[place], widths[run])
                                                .quantizer();
                                steps[2 * place] = fitted.start();
                                steps[2 * place + 1] = fitted.step();
                            });
            out.put(layer, "keys.mean", basis.mean());
            out.put(layer, "keys.basis", basis.forward(), channels, channels);
            out.put(layer, "keys.inverse", basis.inverse(), channels, channels);
            out.put(layer, "keys.widths", widths);
            out.put(layer, "keys.steps", steps, channels, 2);
        }
    }
}
