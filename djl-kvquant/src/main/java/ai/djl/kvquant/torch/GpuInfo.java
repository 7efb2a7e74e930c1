/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.torch;

import ai.djl.engine.EngineException;

/**
 * A GPU as the operators see it.
 *
 * @param computeCapability ten times the compute capability, for example 90
 * @param freeBytes memory that nobody has taken
 * @param totalBytes all memory
 * @param multiprocessors the number of multiprocessors
 */
public record GpuInfo(int computeCapability, long freeBytes, long totalBytes, int multiprocessors) {

    private static final int OLDEST = 80;
    private static final int INSUFFICIENT_DRIVER = 35;

    /**
     * Reads what the operator device_info returns.
     *
     * @param values its result
     * @return the GPU
     * @throws EngineException if the operators can not run on it
     */
    static GpuInfo of(long[] values) {
        int error = (int) values[0];
        if (error == INSUFFICIENT_DRIVER || values[1] / 1000 < values[2] / 1000) {
            throw new EngineException(
                    "The GPU's driver supports CUDA "
                            + version(values[1])
                            + ", but djl-kvquant's operators need CUDA "
                            + values[2] / 1000
                            + ".0. Update the NVIDIA driver, or use the device cpu.");
        }
        if (error != 0) {
            throw new EngineException(
                    "The GPU can not be used: CUDA error "
                            + error
                            + ". See nvidia-smi, or use the device cpu.");
        }
        if (values[3] < OLDEST) {
            throw new EngineException(
                    "The GPU has compute capability "
                            + values[3] / 10
                            + "."
                            + values[3] % 10
                            + "; djl-kvquant's operators need 8.0 or later (A100, RTX 30 and what"
                            + " came after them). Use the device cpu.");
        }
        return new GpuInfo((int) values[3], values[4], values[5], (int) values[6]);
    }

    private static String version(long cuda) {
        return cuda / 1000 + "." + cuda % 1000 / 10;
    }
}
