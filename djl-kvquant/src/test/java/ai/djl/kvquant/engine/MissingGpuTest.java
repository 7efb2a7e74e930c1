/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assumptions.assumeFalse;

import ai.djl.Device;
import ai.djl.Model;
import ai.djl.engine.Engine;
import ai.djl.engine.StandardCapabilities;
import java.util.List;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** What is said where libtorch sees no GPU. */
class MissingGpuTest {

    private static final String REMEDY =
            "this libtorch is one for CPUs: leave ai.djl.pytorch:pytorch-native-cpu off the class"
                    + " path and set PYTORCH_FLAVOR=cu128 in the environment (kvq needs the latter"
                    + " only), and DJL downloads the one for CUDA";

    private final Engine pytorch = Engine.getEngine("PyTorch");

    @BeforeEach
    void skipWithGpu() {
        assumeFalse(pytorch.hasCapability(StandardCapabilities.CUDA), "there is a GPU");
    }

    @Test
    void aModelOnIt() {
        assertEquals(
                "The device asked for is gpu(0), but DJL sees 0 GPUs. If nvidia-smi lists it, "
                        + REMEDY
                        + "; else use Device.cpu(), or leave the device out.",
                assertThrows(
                                IllegalArgumentException.class,
                                () -> Model.newInstance("m", Device.gpu(), "KvQuant"))
                        .getMessage());
    }

    @Test
    void runtimeInfo() {
        assertEquals(
                List.of(
                        "GPU: libtorch "
                                + pytorch.getVersion()
                                + " sees none; if nvidia-smi lists one, "
                                + REMEDY),
                RuntimeInfo.probe().problems());
    }
}
