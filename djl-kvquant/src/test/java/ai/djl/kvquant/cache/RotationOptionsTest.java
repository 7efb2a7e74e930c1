/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.HashMap;
import java.util.Map;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What RotateKV's options make of a layer with 8 kv heads of 16 channels. */
class RotationOptionsTest {

    private static final int HEAD_DIM = 16;
    private static final int KV_HEADS = 8;

    /** Options on top of rotatekv2, as {@code name=value} separated by blanks. */
    private static CacheOptions options(String settings) {
        Map<String, String> values = new HashMap<>();
        values.put("kv_cache_dtype", "rotatekv2");
        for (String setting : settings.split(" ")) {
            if (!setting.isEmpty()) {
                String[] pair = setting.split("=");
                values.put(pair[0], pair[1]);
            }
        }
        return new CacheOptions(values);
    }

    private static CacheGeometry geometry(int headDim) {
        return new CacheGeometry(1, KV_HEADS, KV_HEADS, headDim, 1, new double[headDim / 2], 512);
    }

    /** The mean of the first channel of each head descends, that of the others is 0. */
    private static Calibration calibration() {
        float[] mean = new float[KV_HEADS * HEAD_DIM];
        for (int h = 0; h < KV_HEADS; ++h) {
            mean[h * HEAD_DIM] = 100 - 10 * h;
        }
        return new Calibration.Builder(Map.of()).put(0, "keys.mean", mean).build();
    }

    private static LayerFormat layer(CacheOptions options) {
        return LayerFormat.of(geometry(HEAD_DIM), options, 0);
    }

    private static RotatedFormat keys(CacheOptions options) {
        return (RotatedFormat) layer(options).keys();
    }

    @ParameterizedTest
    @CsvSource({"none,0,false", "post_rope,1,false", "pre_rope_head,1,true", "pre_rope,4,true"})
    void keysAreRotatedInSteps(String rotation, int heads, boolean preRope) {
        RotatedFormat keys = keys(options("kv_rotation=" + rotation));
        assertEquals(heads, keys.rotationHeads());
        assertEquals(preRope, keys.isPreRope());
        assertNull(keys.order());
        assertEquals(1, ((RotatedFormat) layer(options("")).values()).rotationHeads());
    }

    @Test
    void theWholeMethodIsTheDefault() {
        RotatedFormat keys = keys(options("").withCalibration(calibration()));
        CacheOptions spelt = options("kv_rotation=pre_rope kv_order=group kv_value_rotation=true");
        RotatedFormat expected = keys(spelt.withCalibration(calibration()));
        assertArrayEquals(expected.order(), keys.order());
        assertEquals(expected.rotationHeads(), keys.rotationHeads());
    }

    @Test
    void valuesAreRotatedOrNot() {
        CacheOptions options = options("kv_value_rotation=false");
        assertEquals(0, ((RotatedFormat) layer(options).values()).rotationHeads());
        assertEquals(4, keys(options).rotationHeads());
    }

    @Test
    void theOrderIsThatOfItsRange() {
        int[] group = keys(options("kv_order=group").withCalibration(calibration())).order();
        int[] layer = keys(options("kv_order=layer").withCalibration(calibration())).order();
        int half = group.length / 2;
        assertTrue(IntStream.of(group).limit(half).allMatch(c -> c < half));
        assertFalse(IntStream.of(layer).limit(half).allMatch(c -> c < half));
        String heads = "kv_rotation=pre_rope_head kv_order=";
        int[] alone = keys(options(heads + "group").withCalibration(calibration())).order();
        // Alone, all channels of a head get the same mean: a head stays as it is.
        assertArrayEquals(IntStream.range(0, 2 * half).toArray(), alone);
        int[] sorted = keys(options(heads + "layer").withCalibration(calibration())).order();
        for (int place = 0; place < sorted.length; ++place) {
            assertEquals(KV_HEADS - 1 - place / HEAD_DIM, sorted[place] / HEAD_DIM);
        }
    }

    @Test
    void onlyAnOrderThatIsAskedForNeedsACalibration() {
        assertFalse(options("").needsCalibration());
        assertTrue(options("").usesCalibration());
        for (String order : new String[] {"group", "layer"}) {
            assertTrue(options("kv_order=" + order).needsCalibration());
            CacheOptions sized = options("kv_order=" + order).forSizes(geometry(HEAD_DIM));
            assertEquals(SinkPolicy.MASSIVE, layer(sized).sinkPolicy());
        }
        for (String natural : new String[] {"kv_order=natural", "kv_rotation=none"}) {
            assertFalse(options(natural).usesCalibration());
            assertNull(keys(options(natural).withCalibration(calibration())).order());
        }
    }

    /** 24 channels can not be rotated, but they can be stored. */
    @Test
    void onlyRotationNeedsAPowerOfTwo() {
        CacheOptions neither = options("kv_rotation=none kv_value_rotation=false kv_group_size=48");
        LayerFormat.of(geometry(24), neither, 0);
        for (String one : new String[] {"kv_rotation=none", "kv_value_rotation=false"}) {
            CacheOptions options = options(one + " kv_group_size=48");
            IllegalArgumentException e =
                    assertThrows(
                            IllegalArgumentException.class,
                            () -> LayerFormat.of(geometry(24), options, 0));
            assertTrue(e.getMessage().contains("head_dim that is a power of two"), e::getMessage);
        }
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "kv_rotation=on | kv_rotation is 'on'; allowed: none, post_rope, pre_rope_head, pre_rope.",
                "kv_order=head | kv_order is 'head'; allowed: natural, group, layer.",
                "kv_value_rotation=no | kv_value_rotation is 'no'; allowed: true, false.",
                "kv_order=layer kv_rotation=post_rope | kv_order is layer, but kv_rotation is post_rope and",
                "kv_order=group kv_rotation=none | kv_order is group, but kv_rotation is none and keys after",
                "kv_order=natural kv_calibration=f | kv_calibration has no effect, since kv_order is natural",
                "kv_rotation=none kv_calibration=f | kv_calibration has no effect, since kv_rotation is none",
                "kv_cache_dtype=int2 kv_order=group | kv_order has an effect only when keys are stored by",
                "kv_cache_dtype=fp16/rotatekv2 kv_rotation=none | kv_rotation has an effect only when keys",
                "kv_cache_dtype=rotatekv2/int2 kv_value_rotation=false | kv_value_rotation has an effect only"
            })
    void whatMakesNoSenseIsRefused(String settings, String message) {
        IllegalArgumentException e =
                assertThrows(IllegalArgumentException.class, () -> options(settings));
        assertTrue(e.getMessage().startsWith(message), e::getMessage);
    }

    @ParameterizedTest
    @ValueSource(strings = {"kv_group_size=64", "kv_clip=0.9", "kv_float_zero=true"})
    void optionsOfCodesNeedSuchCodes(String setting) {
        for (String dtype : new String[] {"int2", "latent2/fp16"}) {
            IllegalArgumentException e =
                    assertThrows(
                            IllegalArgumentException.class,
                            () -> options("kv_cache_dtype=" + dtype + " " + setting));
            String expected = "has an effect only when keys or values are stored by rotatekv";
            assertTrue(e.getMessage().contains(expected), e::getMessage);
        }
        options("kv_cache_dtype=int2/rotatekv4 " + setting);
    }
}
