/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.Device;
import ai.djl.engine.Engine;
import ai.djl.engine.StandardCapabilities;
import ai.djl.kvquant.torch.OperatorLibrary;
import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/**
 * What this process computes with, and why it can not if it can not.
 *
 * @param djlVersion the version of DJL
 * @param libtorchVersion the version of libtorch that DJL loaded; null if it loaded none
 * @param operatorLibrary the file of the operator library; null if none is loaded
 * @param operatorVariant the variant of the operators in use, for example avx2; null without
 *     library
 * @param bestVariant the best variant that this processor can run; null without library
 * @param threads the threads that operators use; 0 without library
 * @param gpus the GPUs that DJL sees
 * @param cudaLibrary the file of the operator library for GPUs; null if there is none in use
 * @param problems what is missing, each with its reason
 */
public record RuntimeInfo(
        String djlVersion,
        String libtorchVersion,
        String operatorLibrary,
        String operatorVariant,
        String bestVariant,
        int threads,
        int gpus,
        String cudaLibrary,
        List<String> problems) {

    static final String CUDART_REMEDY =
            "DJL does not, because it finds no libcudart.so; add its directory to LD_LIBRARY_PATH";

    /**
     * Loads the libraries, if they are not loaded yet, and looks at them. Never throws.
     *
     * @return what was found
     */
    public static RuntimeInfo probe() {
        String djl = Engine.getDjlVersion();
        Engine pytorch;
        try {
            pytorch = Engine.getEngine("PyTorch");
        } catch (RuntimeException | LinkageError e) {
            return without(djl, null, 0, "libtorch: " + e.getMessage());
        }
        int gpus = pytorch.getGpuCount();
        List<String> problems = gpuProblems(pytorch, gpus);
        try (NDManager manager = pytorch.newBaseManager(Device.cpu());
                Operators operators = new Operators(manager)) {
            return new RuntimeInfo(
                    djl,
                    pytorch.getVersion(),
                    OperatorLibrary.loadedFile(),
                    name(operators.currentVariant()),
                    name(operators.bestVariant()),
                    operators.threads(),
                    gpus,
                    OperatorLibrary.loadedCudaFile(),
                    problems);
        } catch (RuntimeException | LinkageError e) {
            return without(djl, pytorch.getVersion(), gpus, "operators: " + e.getMessage());
        }
    }

    private static RuntimeInfo without(String djl, String libtorch, int gpus, String problem) {
        return new RuntimeInfo(djl, libtorch, null, null, null, 0, gpus, null, List.of(problem));
    }

    private static List<String> gpuProblems(Engine pytorch, int gpus) {
        if (gpus == 0) {
            return List.of(
                    pytorch.hasCapability(StandardCapabilities.CUDA)
                            ? "GPU: libtorch sees one, but " + CUDART_REMEDY
                            : "GPU: libtorch "
                                    + pytorch.getVersion()
                                    + " sees none; if nvidia-smi lists one, "
                                    + OperatorLibrary.GPU_REMEDY);
        }
        List<String> problems = new ArrayList<>();
        for (int i = 0; i < gpus; ++i) {
            try (NDManager manager = pytorch.newBaseManager(Device.gpu(i))) {
                new Operators(manager).close();
            } catch (RuntimeException | LinkageError e) {
                problems.add("GPU " + i + ": " + e.getMessage());
            }
        }
        return problems;
    }

    private static String name(Operators.Variant variant) {
        return variant.name().toLowerCase(Locale.ROOT);
    }
}
