/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.evaluate;

import java.util.List;

/**
 * How exactly one KV cache stores each layer, as signal-to-noise ratios in dB: 20 dB is an error of
 * a tenth of what is stored, in the root mean square; infinite where there is no error.
 *
 * @param dtype the {@code kv_cache_dtype}
 * @param keys for each layer, keys after RoPE as they are read back
 * @param values for each layer, values as they are read back
 * @param attention for each layer, the output of attention, every token reading those before it as
 *     in real decoding
 */
public record LayerErrorResult(
        String dtype, List<Double> keys, List<Double> values, List<Double> attention) {}
