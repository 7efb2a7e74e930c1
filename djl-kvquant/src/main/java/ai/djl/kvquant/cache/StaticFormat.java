/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.util.Arrays;

/**
 * Keys in static codes: each channel, of the natural basis or of a calibrated one, has a width, a
 * start and a step; nothing is stored per token.
 *
 * @param preRope whether keys are stored before RoPE
 * @param mean subtracted from keys before RoPE, [channels]
 * @param order channel at each place, [channels]; null with a basis, whose rows are the places
 * @param steps start and step of each place, [channels, 2]
 * @param widths bits of the codes of each run of headDim / 16 places, the same for all heads
 * @param basis the basis; null: natural
 * @param noise variance of a key's error after RoPE, [channels]; null: scores have no bias
 * @param waves {@link WaveTable}, of keys after RoPE; null: none
 */
record StaticFormat(
        boolean preRope,
        float[] mean,
        int[] order,
        float[] steps,
        int[] widths,
        Basis basis,
        float[] noise,
        float[] waves)
        implements SideFormat {

    /** Runs of places that have codes of one width. */
    static final int RUNS = 16;

    private static final int FORMAT = 3;

    /**
     * A basis.
     *
     * @param heads kv heads that it covers, 1 or all
     * @param forward [kv heads / heads, n places, n channels], n = heads * headDim
     * @param inverse [kv heads / heads, n channels, n places]
     */
    record Basis(int heads, float[] forward, float[] inverse) {}

    /** Reads what calibration found for a layer. */
    static StaticFormat of(
            Calibration calibration, int layer, CacheGeometry geometry, boolean preRope) {
        int[] order = null;
        Basis basis = null;
        if (calibration.has(layer, "keys.basis")) {
            float[] forward = calibration.get(layer, "keys.basis");
            int heads = forward.length / (geometry.channels() * geometry.headDim());
            basis = new Basis(heads, forward, calibration.get(layer, "keys.inverse"));
        } else {
            order = calibration.integers(layer, "keys.order");
        }
        return new StaticFormat(
                preRope,
                calibration.get(layer, "keys.mean"),
                order,
                calibration.get(layer, "keys.steps"),
                calibration.integers(layer, "keys.widths"),
                basis,
                calibration.has(layer, "keys.noise") ? calibration.get(layer, "keys.noise") : null,
                preRope ? null : WaveTable.of(geometry.inverseFrequencies()));
    }

    @Override
    public double effectiveBits() {
        return Arrays.stream(widths).average().orElseThrow();
    }

    @Override
    public boolean isPreRope() {
        return preRope;
    }

    @Override
    public boolean isQuantized() {
        return true;
    }

    @Override
    public boolean hasScoreBias() {
        return noise != null;
    }

    @Override
    public void write(ParamsWriter out) {
        out.putInt(FORMAT).putInt(0).putInt(0).putInt(0).putFloat(1f).putInt(0);
        out.putTable(order).putTable(mean).putTable(steps).putInt(0);
        out.putInt(basis == null ? 0 : basis.heads());
        out.putTable(basis == null ? null : basis.forward());
        out.putTable(basis == null ? null : basis.inverse());
        out.putTable(waves).putTable(noise).putInt(0);
        for (int width : widths) {
            out.putByte(width);
        }
    }
}
