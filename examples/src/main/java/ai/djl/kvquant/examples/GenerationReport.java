/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.generate.CacheUsage;
import ai.djl.kvquant.generate.FinishReason;
import ai.djl.kvquant.generate.GenerationConfig;
import ai.djl.kvquant.generate.GenerationResult;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;

/** What a generation took, for readers and for programs. */
final class GenerationReport {

    private GenerationReport() {}

    static Map<String, Object> json(GenerationResult result) {
        CacheUsage cache = result.cacheUsage();
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("text", result.text());
        json.put("prompt_tokens", result.promptTokens());
        json.put("new_tokens", result.tokens().length);
        json.put("finish_reason", result.finishReason().name().toLowerCase(Locale.ROOT));
        json.put("ttft_ms", Json.round(result.timeToFirstToken().toNanos() / 1e6, 1));
        json.put("tokens_per_second", Json.round(result.tokensPerSecond(), 2));
        json.put("kv_cache_dtype", cache.dtype());
        json.put("bits_per_key", cache.bitsPerKey());
        json.put("bits_per_value", cache.bitsPerValue());
        json.put("key_bits_read", cache.keyBitsRead());
        json.put("kv_bytes", cache.bytes());
        json.put("kv_bytes_fp16", cache.fp16Bytes());
        return json;
    }

    static String line(GenerationResult result, GenerationConfig config) {
        int count = result.tokens().length;
        String limit =
                result.finishReason() == FinishReason.LENGTH
                        ? " (the limit, --max-new-tokens " + config.getMaxNewTokens() + ")"
                        : "";
        return String.format(
                Locale.ROOT,
                "%d tokens%s, %.1f tok/s, first after %.0f ms; KV cache %s",
                count,
                limit,
                result.tokensPerSecond(),
                result.timeToFirstToken().toNanos() / 1e6,
                cache(result.cacheUsage()));
    }

    private static String cache(CacheUsage cache) {
        double ratio = (double) cache.fp16Bytes() / cache.bytes();
        String comparison =
                ratio >= 1
                        ? String.format(Locale.ROOT, "%.1fx less", ratio)
                        : String.format(Locale.ROOT, "%.1fx more", 1 / ratio);
        return String.format(
                Locale.ROOT,
                "%s %s, %s than fp16's %s",
                cache.dtype(),
                bytes(cache.bytes()),
                comparison,
                bytes(cache.fp16Bytes()));
    }

    static String bytes(double bytes) {
        if (bytes < 1 << 20) {
            return String.format(Locale.ROOT, "%.1f KiB", bytes / (1 << 10));
        }
        return bytes < 1 << 30
                ? String.format(Locale.ROOT, "%.1f MiB", bytes / (1 << 20))
                : String.format(Locale.ROOT, "%.2f GiB", bytes / (1 << 30));
    }
}
