/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import ai.djl.kvquant.cache.CacheOptions;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

/** Which options reach which cache. */
class CacheArgumentsTest {

    private static CacheArguments arguments(Map<String, String> settings, String... dtypes) {
        Kvq kvq = new Kvq();
        kvq.settings.putAll(settings);
        kvq.cacheDtypes.addAll(List.of(dtypes));
        return new CacheArguments(kvq, "rotatekv4", "fp16");
    }

    @Test
    void defaultsStandForMissingDataTypes() {
        List<String> names =
                arguments(Map.of()).several(Map.of()).stream().map(o -> o.dtype().name()).toList();
        assertEquals(List.of("rotatekv4", "fp16"), names);
    }

    @Test
    void anOptionAppliesToTheCachesThatHaveIt() {
        List<CacheOptions> options =
                arguments(Map.of("kv_recent_tokens", "32"), "auto", "rotatekv2").several(Map.of());
        assertEquals(0, options.get(0).window());
        assertEquals(32, options.get(1).window());
    }

    @Test
    void anOptionThatNoCacheHasIsRefused() {
        CacheArguments arguments = arguments(Map.of("kv_recent_tokens", "32"), "auto", "fp16");
        assertThrows(IllegalArgumentException.class, () -> arguments.several(Map.of()));
    }

    @Test
    void settingsOverrideDefaults() {
        CacheOptions options =
                arguments(Map.of("max_batch_size", "7"), "auto")
                        .several(Map.of("max_batch_size", "3"))
                        .get(0);
        assertEquals(7, options.maxBatchSize());
    }
}
