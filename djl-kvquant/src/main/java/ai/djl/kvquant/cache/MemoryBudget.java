/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import ai.djl.kvquant.torch.GpuInfo;
import ai.djl.kvquant.torch.Operators;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.OptionalLong;
import java.util.stream.Stream;

/**
 * The memory of the device that a cache is on.
 *
 * @param owner whose memory it is, for errors
 * @param defaultBytes what a cache takes unless its options say otherwise
 * @param totalBytes all there is
 * @param bounded whether a cache by default takes no more than max_batch_size sequences of the
 *     longest context need: on a CPU, others need memory, too
 */
public record MemoryBudget(String owner, long defaultBytes, long totalBytes, boolean bounded) {

    private static final double SHARE_OF_FREE_HOST_MEMORY = 0.25;
    private static final double SHARE_OF_FREE_GPU_MEMORY = 0.85;

    /**
     * Looks at a device.
     *
     * @param operators the operators of the device
     * @param reserved bytes that computing takes from what is free
     * @return its memory
     */
    public static MemoryBudget of(Operators operators, long reserved) {
        if (operators.onGpu()) {
            GpuInfo gpu = operators.gpu();
            long free = Math.max(0, gpu.freeBytes() - reserved);
            long share = (long) (free * SHARE_OF_FREE_GPU_MEMORY);
            return new MemoryBudget("GPU", share, gpu.totalBytes(), false);
        }
        long share = (long) (freeMemory() * SHARE_OF_FREE_HOST_MEMORY);
        return new MemoryBudget("machine", share, system().getTotalMemorySize(), true);
    }

    /** The same device with as much memory as anyone wants. */
    MemoryBudget unlimited() {
        return new MemoryBudget(owner, Long.MAX_VALUE, Long.MAX_VALUE, bounded);
    }

    private static com.sun.management.OperatingSystemMXBean system() {
        return (com.sun.management.OperatingSystemMXBean)
                ManagementFactory.getOperatingSystemMXBean();
    }

    private static long freeMemory() {
        return available().orElseGet(() -> system().getFreeMemorySize());
    }

    /**
     * Returns what could be allocated on this machine without swapping: page cache that can be
     * dropped counts as free. In a container it is at most what that may take.
     *
     * @return the bytes; empty where the system does not tell
     */
    public static OptionalLong available() {
        try (Stream<String> lines = Files.lines(Path.of("/proc/meminfo"))) {
            return lines.filter(line -> line.startsWith("MemAvailable:"))
                    .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")) * 1024)
                    .map(bytes -> Math.min(bytes, system().getTotalMemorySize()))
                    .findFirst();
        } catch (IOException e) {
            return OptionalLong.empty();
        }
    }
}
