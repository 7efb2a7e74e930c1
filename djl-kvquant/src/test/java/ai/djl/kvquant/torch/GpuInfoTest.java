/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.torch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assumptions.assumeFalse;

import ai.djl.Device;
import ai.djl.engine.Engine;
import ai.djl.engine.EngineException;
import ai.djl.engine.StandardCapabilities;
import ai.djl.ndarray.NDManager;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What is told of GPUs that can not be used. */
class GpuInfoTest {

    @Test
    void tellsMemory() {
        long[] values = {0, 13000, 13000, 90, 5, 80, 132};
        assertEquals(new GpuInfo(90, 5, 80, 132), GpuInfo.of(values));
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '"',
            value = {
                "35|12080|13000|0|The GPU's driver supports CUDA 12.8, but djl-kvquant's operators need"
                        + " CUDA 13.0. Update the NVIDIA driver, or use the device cpu.",
                "0|12040|13000|90|The GPU's driver supports CUDA 12.4, but djl-kvquant's operators need"
                        + " CUDA 13.0. Update the NVIDIA driver, or use the device cpu.",
                "0|13000|13000|75|The GPU has compute capability 7.5; djl-kvquant's operators need 8.0 or"
                        + " later (A100, RTX 30 and what came after them). Use the device cpu.",
                "46|13000|13000|0|The GPU can not be used: CUDA error 46. See nvidia-smi, or use the"
                        + " device cpu."
            })
    void refusesWhatCanNotRun(long error, long driver, long runtime, long arch, String message) {
        long[] values = {error, driver, runtime, arch, 1, 2, 3};
        assertEquals(
                message,
                assertThrows(EngineException.class, () -> GpuInfo.of(values)).getMessage());
    }

    @Test
    void tellsThatLibtorchSeesNoGpu() {
        Engine pytorch = Engine.getEngine("PyTorch");
        assumeFalse(pytorch.hasCapability(StandardCapabilities.CUDA), "there is a GPU");
        try (NDManager manager = pytorch.newBaseManager(Device.gpu())) {
            String message =
                    assertThrows(EngineException.class, () -> new Operators(manager).close())
                            .getMessage();
            assertEquals(
                    "A GPU was asked for, but libtorch "
                            + pytorch.getVersion()
                            + " sees none. If nvidia-smi lists one, this libtorch is one for CPUs:"
                            + " leave ai.djl.pytorch:pytorch-native-cpu off the class path and set"
                            + " PYTORCH_FLAVOR=cu128 in the environment (kvq needs the latter"
                            + " only), and DJL downloads the one for CUDA; else use the device"
                            + " cpu.",
                    message);
        }
    }
}
