/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * KVQuant's codes: start + step * level[code], with outliers of each token kept exactly.
 *
 * @param bits bits of a code
 * @param channels channels of a layer
 * @param steps of keys: start and step of each channel, [channels, 2]; null: of each token (values)
 * @param levels what codes are chosen by, ascending
 * @param readLevels what codes stand for, ascending
 * @param outliers of a token, at most
 */
record CodebookFormat(
        int bits, int channels, float[] steps, float[] levels, float[] readLevels, int outliers)
        implements SideFormat {

    private static final int FORMAT = 5;
    private static final int RANGE_BITS = 32;
    private static final int OUTLIER_BITS = 32;

    /** Channels have thresholds, so that the outliers of a token vary in number. */
    private static final double KEY_SLOTS_PER_OUTLIER = 1.5625;

    /** Keys of a layer. */
    static CodebookFormat keys(int bits, CacheGeometry geometry, CacheOptions options, int layer) {
        float[] steps = array(options, layer, "keys.steps", 2 * geometry.channels());
        return of(bits, geometry, options, layer, "keys", steps);
    }

    /** Values of a layer. */
    static CodebookFormat values(
            int bits, CacheGeometry geometry, CacheOptions options, int layer) {
        return of(bits, geometry, options, layer, "values", null);
    }

    private static CodebookFormat of(
            int bits,
            CacheGeometry geometry,
            CacheOptions options,
            int layer,
            String side,
            float[] steps) {
        float[] levels = array(options, layer, side + ".levels", 1 << bits);
        float[] read =
                options.codebook().normalized()
                        ? array(options, layer, side + ".read_levels", 1 << bits)
                        : levels;
        int channels = geometry.channels();
        int outliers =
                steps == null
                        ? valueOutliers(channels, options.outliers())
                        : keyOutliers(channels, options.outliers());
        return new CodebookFormat(bits, channels, steps, levels, read, outliers);
    }

    private static float[] array(CacheOptions options, int layer, String name, int size) {
        float[] array = options.calibration().get(layer, name);
        if (array.length != size) {
            throw new IllegalArgumentException(
                    "The calibration's "
                            + name
                            + " of layer "
                            + layer
                            + " has "
                            + array.length
                            + " elements, but kv_cache_dtype "
                            + options.dtype().name()
                            + " needs "
                            + size
                            + ". Calibrate again.");
        }
        return array;
    }

    /**
     * Slots of a token's keys, at least one: more than the share, since the number of outliers
     * varies. At 0.01 they take half a bit of an element at most if there are 64 channels or more.
     */
    static int keyOutliers(int channels, double share) {
        int slots = (int) Math.floor(KEY_SLOTS_PER_OUTLIER * share * channels + 1e-9);
        return share == 0 ? 0 : Math.min(Math.max(1, slots), channels / 2);
    }

    /**
     * Slots of a token's values: as many for the smallest as for the largest, at least one each.
     */
    static int valueOutliers(int channels, double share) {
        int slots = 2 * Math.max(1, (int) Math.round(share * channels / 2));
        return share == 0 ? 0 : Math.min(slots, channels / 2);
    }

    @Override
    public double effectiveBits() {
        int range = steps == null ? RANGE_BITS : 0;
        return bits + (double) (range + outliers * OUTLIER_BITS) / channels;
    }

    @Override
    public boolean isPreRope() {
        return steps != null;
    }

    @Override
    public boolean isQuantized() {
        return true;
    }

    @Override
    public void write(ParamsWriter out) {
        float[] both = new float[2 * levels.length];
        System.arraycopy(levels, 0, both, 0, levels.length);
        System.arraycopy(readLevels, 0, both, levels.length, levels.length);
        out.putInt(FORMAT).putInt(bits).putInt(0).putInt(0).putFloat(1f).putInt(0);
        out.putInt(0).putInt(0).putTable(steps).putTable(both);
        out.putInt(0).putInt(0).putInt(0).putInt(0).putInt(0).putInt(outliers);
        for (int i = 16; i < BYTES / Integer.BYTES; ++i) {
            out.putInt(0);
        }
    }
}
