/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class SvdqScheduleTest {

    @Test
    void widthsAreThePapersTwoRunsToAGroup() {
        int[] more = {8, 8, 4, 4, 4, 4, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0};
        int[] less = {4, 4, 4, 4, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
        assertArrayEquals(more, SvdqSchedule.of(2.25).widths());
        assertArrayEquals(less, SvdqSchedule.of(1.25).widths());
    }

    @ParameterizedTest
    @ValueSource(doubles = {2.25, 1.25})
    void theAverageIsExact(double bits) {
        SvdqSchedule schedule = SvdqSchedule.of(bits);
        int sum = 0;
        for (int width : schedule.widths()) {
            sum += width;
        }
        assertEquals(bits, sum / 16.0);
        assertEquals(bits, schedule.bits());
        assertEquals(bits, CacheDtype.parse("svdq" + bits).keyBits());
    }

    @Test
    void otherAveragesAreRefused() {
        Exception e = assertThrows(IllegalArgumentException.class, () -> SvdqSchedule.of(2));
        assertTrue(e.getMessage().contains("allowed: 2.25, 1.25"), e.getMessage());
    }

    /** 16 bits of each element of the kept axes dominate: 16 r / (16 - b) tokens for r axes. */
    @ParameterizedTest
    @CsvSource({"2.25, 192, 96", "1.25, 192, 72", "2.25, 1024, 512", "1.25, 1024, 384"})
    void aBasisPaysFromTheLengthOnWhereItSavesMoreThanItTakes(double bits, int channels, int kept) {
        SvdqSchedule schedule = SvdqSchedule.of(bits);
        assertEquals(channels * (16.0 * kept + 32) + 64 * kept, schedule.basisBits(channels));
        int shortest = schedule.shortestPrompt(channels);
        double alone = 16.0 * channels * shortest;
        assertTrue(bits * channels * shortest + schedule.basisBits(channels) <= alone);
        int shorter = shortest - 1;
        assertTrue(
                bits * channels * shorter + schedule.basisBits(channels)
                        > 16.0 * channels * shorter);
        assertEquals(16 * kept / (16 - bits), shortest, 8);
    }

    @ParameterizedTest
    @CsvSource({
        "svdq2.25, svdq2.25, INT",
        "svdq2.25/int4, svdq2.25, INT",
        "'svdq1.25,fp16', svdq1.25, FP16",
        "svdq1.25/rotatekv4, svdq1.25, ROTATEKV"
    })
    void valuesTakeFourBitsUnlessAPairSaysOtherwise(String name, String keys, CacheMethod values) {
        CacheDtype dtype = CacheDtype.parse(name);
        assertEquals(CacheMethod.SVDQ, dtype.keyMethod());
        assertEquals(keys, dtype.keyName());
        assertEquals(values, dtype.values().method());
        assertEquals(values == CacheMethod.FP16 ? 16 : 4, dtype.values().bits());
        assertEquals(keys, CacheOptions.of(name).calibrationName());
    }

    @Test
    void valuesAreNotStoredWithSvdq() {
        for (String name : new String[] {"int4/svdq2.25", "svdq2.25/svdq1.25"}) {
            Exception e =
                    assertThrows(IllegalArgumentException.class, () -> CacheDtype.parse(name));
            assertTrue(e.getMessage().contains("for keys only"), e.getMessage());
        }
    }

    @Test
    void sinksAreExactAndNothingIsRecent() {
        CacheOptions options = CacheOptions.of("svdq2.25");
        assertEquals(4, options.firstSinks());
        assertEquals(0, options.window());
        assertTrue(options.needsCalibration());
        assertTrue(options.layerWideBasis());
    }

    @Test
    void basesAreLimitedAndOfALayer() {
        CacheOptions options = CacheOptions.of("svdq2.25");
        CacheGeometry large = new CacheGeometry(80, 64, 8, 128, 1, new double[64], 4096);
        Exception e =
                assertThrows(IllegalArgumentException.class, () -> options.requireFits(large));
        assertTrue(e.getMessage().contains("320 MiB over all layers; allowed: 256"), e.toString());
        Map<String, String> perHead = Map.of("kv_cache_dtype", "svdq2.25", "kv_basis", "head");
        e = assertThrows(IllegalArgumentException.class, () -> new CacheOptions(perHead));
        assertTrue(e.getMessage().contains("allowed with svdq2.25: layer, prompt"), e.toString());
        Map<String, String> latent = Map.of("kv_cache_dtype", "latent2", "kv_basis", "prompt");
        e = assertThrows(IllegalArgumentException.class, () -> new CacheOptions(latent));
        assertTrue(e.getMessage().contains("allowed with latent2: head, layer"), e.toString());
    }
}
