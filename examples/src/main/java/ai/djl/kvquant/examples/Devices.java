/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.Device;
import ai.djl.engine.Engine;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** What --device stands for. */
final class Devices {

    private static final Pattern GPU = Pattern.compile("(?:gpu|cuda)(?::(\\d{1,3}))?");

    private Devices() {}

    /** The name of a device. */
    static String name(Device device) {
        return device.isGpu() ? "gpu:" + device.getDeviceId() : device.getDeviceType();
    }

    /** The device of a name; auto is the engine's default. */
    static Device parse(String name) {
        if ("cpu".equals(name)) {
            return Device.cpu();
        }
        Matcher gpu = GPU.matcher(name);
        if (!"auto".equals(name) && !gpu.matches()) {
            throw new IllegalArgumentException(
                    "--device '"
                            + name
                            + "' is not known; allowed: auto (a GPU if there is one), cpu, gpu,"
                            + " gpu:N.");
        }
        Engine engine = Engine.getEngine("PyTorch");
        if ("auto".equals(name)) {
            return engine.defaultDevice();
        }
        int number = gpu.group(1) == null ? 0 : Integer.parseInt(gpu.group(1));
        if (number >= engine.getGpuCount()) {
            throw new IllegalArgumentException(
                    "--device "
                            + name
                            + " is not available: DJL sees "
                            + engine.getGpuCount()
                            + " GPUs. 'kvq info --device cpu' tells why; or use --device cpu.");
        }
        return Device.gpu(number);
    }
}
