/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.Device;
import ai.djl.Model;
import ai.djl.engine.Engine;
import ai.djl.engine.StandardCapabilities;
import ai.djl.kvquant.torch.OperatorLibrary;
import ai.djl.ndarray.NDManager;
import ai.djl.nn.SymbolBlock;
import ai.djl.training.GradientCollector;

/**
 * The engine {@code KvQuant}. Arrays, devices and versions are those of the PyTorch engine; models
 * are LLaMA checkpoints with a quantized KV cache.
 */
public final class KvQuantEngine extends Engine {

    /** The name under which criteria, serving.properties and URLs ask for this engine. */
    public static final String ENGINE_NAME = "KvQuant";

    /** Behind every other engine: nobody gets this one without asking for it. */
    static final int RANK = 100;

    private final Engine pytorch = Engine.getEngine("PyTorch");

    KvQuantEngine() {}

    /** {@inheritDoc} */
    @Override
    public Engine getAlternativeEngine() {
        return null;
    }

    /** {@inheritDoc} */
    @Override
    public String getEngineName() {
        return ENGINE_NAME;
    }

    /** {@inheritDoc} */
    @Override
    public int getRank() {
        return RANK;
    }

    /** {@inheritDoc} */
    @Override
    public String getVersion() {
        return pytorch.getVersion();
    }

    /** {@inheritDoc} */
    @Override
    public boolean hasCapability(String capability) {
        return pytorch.hasCapability(capability);
    }

    /** {@inheritDoc} */
    @Override
    public SymbolBlock newSymbolBlock(NDManager manager) {
        return pytorch.newSymbolBlock(manager);
    }

    /** {@inheritDoc} */
    @Override
    public Model newModel(String name, Device device) {
        Device target = device == null ? defaultDevice() : device;
        if (!target.isGpu() && !Device.Type.CPU.equals(target.getDeviceType())) {
            throw new IllegalArgumentException(
                    "The engine KvQuant has operators for CPUs and NVIDIA GPUs, but the device"
                            + " asked for is "
                            + target
                            + ". Use Device.cpu() or Device.gpu(), or leave the device out.");
        }
        if (target.isGpu() && target.getDeviceId() >= getGpuCount()) {
            throw new IllegalArgumentException(
                    "The device asked for is "
                            + target
                            + ", but DJL sees "
                            + getGpuCount()
                            + " GPUs. If nvidia-smi lists it, "
                            + gpuRemedy()
                            + "; else use Device.cpu(), or leave the device out.");
        }
        return new KvQuantModel(name, pytorch.newBaseManager(target));
    }

    private String gpuRemedy() {
        if (getGpuCount() > 0) {
            return "look at CUDA_VISIBLE_DEVICES";
        }
        return hasCapability(StandardCapabilities.CUDA)
                ? RuntimeInfo.CUDART_REMEDY
                : OperatorLibrary.GPU_REMEDY;
    }

    /** {@inheritDoc} */
    @Override
    public NDManager newBaseManager() {
        return pytorch.newBaseManager();
    }

    /** {@inheritDoc} */
    @Override
    public NDManager newBaseManager(Device device) {
        return pytorch.newBaseManager(device);
    }

    /** {@inheritDoc} */
    @Override
    public GradientCollector newGradientCollector() {
        return pytorch.newGradientCollector();
    }

    /** {@inheritDoc} */
    @Override
    public void setRandomSeed(int seed) {
        super.setRandomSeed(seed);
        pytorch.setRandomSeed(seed);
    }

    /** {@inheritDoc} */
    @Override
    public String toString() {
        return ENGINE_NAME + " on " + pytorch;
    }
}
