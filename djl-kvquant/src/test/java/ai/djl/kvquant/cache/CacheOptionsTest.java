/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class CacheOptionsTest {

    private static CacheOptions options(String... pairs) {
        Map<String, String> values = new HashMap<>();
        for (int i = 0; i < pairs.length; i += 2) {
            values.put(pairs[i], pairs[i + 1]);
        }
        return new CacheOptions(values);
    }

    @Test
    void nothingIsQuantizedByDefault() {
        CacheOptions options = options("engine", "KvQuant", "batch_size", "7");
        assertEquals("auto", options.dtype().name());
        assertEquals(0, options.window());
        assertEquals(SinkPolicy.NONE, options.exact().sinkPolicy());
        assertEquals(4, options.maxBatchSize());
    }

    @Test
    void optionsOfOthersAreIgnored() {
        CacheOptions options =
                options(
                        "kvDim", "64",
                        "numLayers", "12",
                        "batchSize", "2",
                        "max_rolling_batch_size", "32",
                        "group_size", "128",
                        "model_id", "x");
        assertEquals(4, options.maxBatchSize());
    }

    @ParameterizedTest
    @CsvSource({
        "kv-cache-dtype,kv_cache_dtype",
        "KV_CACHE_DTYPE,kv_cache_dtype",
        "kvCacheDtype,kv_cache_dtype",
        "cache_dtype,kv_cache_dtype",
        "kv_recenttokens,kv_recent_tokens",
        "max-batch-size,max_batch_size",
        "max_batchsize,max_batch_size"
    })
    void otherSpellingsAreRefused(String written, String meant) {
        assertEquals(
                "Unknown option " + written + "; did you mean " + meant + "?",
                assertThrows(IllegalArgumentException.class, () -> options(written, "1"))
                        .getMessage());
    }

    @Test
    void rotateKvKeepsMassiveSinks() {
        CacheOptions options = options("kv_cache_dtype", "rotatekv2");
        assertEquals(SinkPolicy.MASSIVE, options.exact().sinkPolicy());
        assertEquals(20, options.exact().maxSinks());
        assertEquals(0, options.window());
        assertEquals(0.8f, options.groups().clip(2));
        assertEquals(1f, options.groups().clip(4));
    }

    @ParameterizedTest
    @CsvSource({"massive,MASSIVE,20", "0,NONE,0", "4,FIRST,4", "20,FIRST,20"})
    void sinksAreMassiveOrCounted(String value, SinkPolicy policy, int most) {
        CacheOptions options = options("kv_cache_dtype", "rotatekv4", "kv_sink_tokens", value);
        assertEquals(policy, options.exact().sinkPolicy());
        assertEquals(most, options.exact().maxSinks());
    }

    @ParameterizedTest
    @CsvSource({
        "head,false,0,latent2", "layer,true,0,latent2-layer",
        "band16,false,16,latent2-band16", "band32,false,32,latent2-band32"
    })
    void aBasisCoversALayerAHeadOrABand(String basis, boolean wide, int band, String name) {
        CacheOptions options = options("kv_cache_dtype", "latent2", "kv_basis", basis);
        assertEquals(wide, options.layerWideBasis());
        assertEquals(band, options.basisBand());
        assertEquals(name, options.calibrationName());
    }

    @Test
    void bandsFillAHead() {
        CacheOptions options = options("kv_cache_dtype", "latent2", "kv_basis", "band32");
        options.requireFits(new CacheGeometry(1, 1, 1, 64, 1, new double[32], 512));
        CacheGeometry odd = new CacheGeometry(1, 1, 1, 80, 1, new double[40], 512);
        IllegalArgumentException e =
                assertThrows(IllegalArgumentException.class, () -> options.requireFits(odd));
        assertTrue(e.getMessage().startsWith("kv_basis is band32, which needs a head_dim"));
    }

    @ParameterizedTest
    @CsvSource({"4096,4096", "1k,1024", "2 MiB,2097152", "3g,3221225472", "1T,1099511627776"})
    void memoryHasUnits(String value, long bytes) {
        assertEquals(bytes, options("kv_cache_memory", value).size().bytes());
    }

    @Test
    void pairsNameKeysThenValues() {
        for (String value :
                new String[] {"rotatekv4/fp16", "rotatekv4,fp16", " rotatekv4 / fp16 "}) {
            CacheDtype dtype = options("kv_cache_dtype", value).dtype();
            assertEquals("rotatekv4/fp16", dtype.name());
            assertEquals(4, dtype.keys().bits());
            assertEquals(CacheMethod.FP16, dtype.values().method());
        }
    }

    @Test
    void layersAreSkippedByNumber() {
        CacheOptions options = options("kv_cache_dtype", "rotatekv4", "kv_skip_layers", "0, 3;5");
        assertEquals(Set.of(0, 3, 5), options.exact().skipLayers(6));
        assertThrows(IllegalArgumentException.class, () -> options.exact().skipLayers(5));
    }

    @ParameterizedTest
    @CsvSource({
        "auto,kv_clip,1,a quantized kv_cache_dtype",
        "int2,kv_clip,1,a kv_cache_dtype such as rotatekv4",
        "int2,kv_basis,layer,a kv_cache_dtype such as latent2",
        "rotatekv2,kv_outliers,0,a kv_cache_dtype such as kvquant2"
    })
    void anErrorNamesADataTypeThatTakesTheOption(
            String dtype, String name, String value, String better) {
        IllegalArgumentException e =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> options("kv_cache_dtype", dtype, name, value));
        String expected = "kv_cache_dtype is " + dtype + ". Remove it or choose " + better + ".";
        assertTrue(e.getMessage().endsWith(expected), e::getMessage);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "kv_cache_type      | fp16      | Unknown option kv_cache_type; the cache options are",
                "kv_cache_dtype     | int5      | kv_cache_dtype 'int5' is not supported; choose one of",
                "kv_cache_dtype     | auto/fp16/auto | kv_cache_dtype 'auto/fp16/auto' is not supported",
                "kv_recent_tokens   | 5         | kv_recent_tokens has an effect only when keys are",
                "kv_group_size      | 64        | kv_group_size has an effect only when keys or values",
                "kv_cache_tokens    | 0         | kv_cache_tokens is '0'; allowed: a whole number from 1",
                "kv_cache_memory    | 0         | kv_cache_memory is '0'; allowed: bytes, or a number",
                "kv_cache_memory    | 99999999999t | kv_cache_memory is '99999999999t'; allowed: bytes",
                "kv_clip            | 0         | kv_clip has an effect only when",
                "max_batch_size     | none      | max_batch_size is 'none'; allowed: a whole number"
            })
    void badValuesAreRefused(String name, String value, String message) {
        IllegalArgumentException e =
                assertThrows(IllegalArgumentException.class, () -> options(name, value));
        assertTrue(e.getMessage().startsWith(message), e::getMessage);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "kv_recent_tokens | -1    | kv_recent_tokens is '-1'; allowed: a whole number from 0",
                "kv_sink_tokens   | many  | kv_sink_tokens is 'many'; allowed: massive",
                "kv_sink_tokens   | 5000  | kv_sink_tokens is '5000'; allowed: massive",
                "kv_clip          | 1.5   | kv_clip is '1.5'; allowed: a number above 0 and at most 1.",
                "kv_float_zero    | yes   | kv_float_zero is 'yes'; allowed: true, false.",
                "kv_rollback_tokens | x   | kv_rollback_tokens is 'x'; allowed: a whole number"
            })
    void badValuesOfRotateKvAreRefused(String name, String value, String message) {
        IllegalArgumentException e =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> options("kv_cache_dtype", "rotatekv4", name, value));
        assertTrue(e.getMessage().startsWith(message), e::getMessage);
    }
}
