/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Stream;

/** How many tokens, pages and sequences a cache is made for. */
final class CacheSize {

    /** Sequences with exact pages: those being decoded, and as many prefixes that are kept. */
    private static final int SEQUENCES_PER_BATCH_ROW = 4;

    private static final double DEFAULT_SHARE_OF_FREE_MEMORY = 0.25;

    private final long tokens;
    private final int pages;
    private final int sequences;

    CacheSize(CacheGeometry geometry, SizeOptions options, long pageBytes, long exactBytes) {
        sequences = SEQUENCES_PER_BATCH_ROW * options.maxBatchSize();
        long exactTotal = sequences * exactBytes;
        long wanted = (long) geometry.maxTokens() * options.maxBatchSize();
        if (options.tokens() > 0) {
            tokens = options.tokens();
        } else if (options.bytes() > 0) {
            tokens = tokensIn(options.bytes() - exactTotal, pageBytes);
        } else {
            long budget = (long) (freeMemory() * DEFAULT_SHARE_OF_FREE_MEMORY);
            tokens = Math.min(wanted, tokensIn(budget - exactTotal, pageBytes));
        }
        // Every sequence may leave its last page partly empty.
        long count = (tokens + KvCache.PAGE_TOKENS - 1) / KvCache.PAGE_TOKENS;
        count += options.maxBatchSize();
        if (tokens < Math.min(KvCache.PAGE_TOKENS, wanted) && options.tokens() == 0) {
            throw new IllegalArgumentException(
                    "The KV cache has no room for a page: "
                            + KvCache.PAGE_TOKENS
                            + " tokens take "
                            + pageBytes
                            + " bytes, and the exact tokens of "
                            + sequences
                            + " sequences "
                            + exactTotal
                            + ". Set kv_cache_memory higher, or max_batch_size or"
                            + " kv_recent_tokens lower.");
        }
        long bytes = count * pageBytes + exactTotal;
        if (bytes > totalMemory()) {
            throw new IllegalArgumentException(
                    "A KV cache of "
                            + tokens
                            + " tokens takes "
                            + bytes / (1 << 20)
                            + " MiB, more than the machine's "
                            + totalMemory() / (1 << 20)
                            + " MiB. Set kv_cache_tokens or kv_cache_memory lower (or max_batch_size or"
                            + " kv_recent_tokens), or choose a kv_cache_dtype with fewer bits.");
        }
        pages = Math.toIntExact(count);
    }

    private static long tokensIn(long bytes, long pageBytes) {
        return Math.max(0, bytes) / pageBytes * KvCache.PAGE_TOKENS;
    }

    long tokens() {
        return tokens;
    }

    int pages() {
        return pages;
    }

    int sequences() {
        return sequences;
    }

    private static com.sun.management.OperatingSystemMXBean system() {
        return (com.sun.management.OperatingSystemMXBean)
                ManagementFactory.getOperatingSystemMXBean();
    }

    /**
     * What could be allocated without swapping: on Linux, page cache that can be dropped counts as
     * well.
     */
    private static long freeMemory() {
        try (Stream<String> lines = Files.lines(Path.of("/proc/meminfo"))) {
            return lines.filter(line -> line.startsWith("MemAvailable:"))
                    .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")) * 1024)
                    .findFirst()
                    .orElseGet(() -> system().getFreeMemorySize());
        } catch (IOException e) {
            return system().getFreeMemorySize();
        }
    }

    private static long totalMemory() {
        return system().getTotalMemorySize();
    }
}
