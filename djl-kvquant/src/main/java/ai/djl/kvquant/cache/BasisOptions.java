/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.List;

/**
 * In which basis keys are stored: kv_basis.
 *
 * @param name head, layer or prompt: what has a basis of its own; or band16, band32
 * @param method how keys are stored
 */
record BasisOptions(String name, CacheMethod method) {

    static final String BASIS = "kv_basis";

    private static final String HEAD = "head";
    private static final String LAYER = "layer";
    private static final String PROMPT = "prompt";
    private static final String BAND = "band";
    private static final long MAX_BYTES = 256L << 20;

    /**
     * Reads the option.
     *
     * @throws IllegalArgumentException if it has an impossible value or no effect
     */
    static BasisOptions of(OptionValues values, CacheDtype dtype) {
        CacheMethod method = dtype.keyMethod();
        if (method != CacheMethod.LATENT && method != CacheMethod.SVDQ) {
            values.refuse(
                    BASIS, "keys are stored in a basis", dtype, "a kv_cache_dtype such as latent2");
        }
        List<String> allowed =
                method == CacheMethod.SVDQ
                        ? List.of(LAYER, PROMPT)
                        : List.of(HEAD, LAYER, BAND + 16, BAND + 32);
        String name = values.text(BASIS, allowed.get(0));
        if (!allowed.contains(name)) {
            throw new IllegalArgumentException(
                    "kv_basis is '"
                            + name
                            + "'; allowed with "
                            + dtype.keyName()
                            + ": "
                            + String.join(", ", allowed)
                            + ".");
        }
        return new BasisOptions(name, method);
    }

    /** Whether a basis is found from the keys of a sequence's own prompt. */
    boolean ofPrompt() {
        return PROMPT.equals(name);
    }

    /** Whether a basis covers all kv heads of a layer. */
    boolean isLayerWide() {
        return LAYER.equals(name) || ofPrompt();
    }

    /** Channels of a head that a basis mixes; 0: all of a head or of a layer. */
    int band() {
        return name.startsWith(BAND) ? Integer.parseInt(name.substring(BAND.length())) : 0;
    }

    /** What this option adds to the name of a calibration. */
    String suffix() {
        return method != CacheMethod.LATENT || HEAD.equals(name) ? "" : "-" + name;
    }

    /**
     * Checks the basis against a model.
     *
     * @throws IllegalArgumentException if it takes too much memory or does not divide a head
     */
    void requireFits(CacheGeometry geometry) {
        long bytes = 4L * geometry.channels() * geometry.channels() * geometry.numLayers();
        if (isLayerWide() && bytes > MAX_BYTES) {
            throw new IllegalArgumentException(
                    "kv_basis is "
                            + name
                            + ", whose bases would take "
                            + (bytes >> 20)
                            + " MiB over all layers; allowed: "
                            + (MAX_BYTES >> 20)
                            + " MiB. "
                            + (method == CacheMethod.SVDQ
                                    ? "Choose kv_cache_dtype=latent2."
                                    : "Set kv_basis=head."));
        }
        if (band() > 0 && geometry.headDim() % band() != 0) {
            throw new IllegalArgumentException(
                    "kv_basis is "
                            + name
                            + ", which needs a head_dim that is a multiple of "
                            + band()
                            + ", but the model's is "
                            + geometry.headDim()
                            + ". Set kv_basis=head.");
        }
    }
}
