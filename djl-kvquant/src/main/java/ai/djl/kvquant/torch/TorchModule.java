/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.torch;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import ai.djl.pytorch.engine.PtNDArray;
import ai.djl.pytorch.engine.PtNDManager;
import ai.djl.pytorch.engine.PtSymbolBlock;
import ai.djl.pytorch.jni.IValue;
import ai.djl.pytorch.jni.IValueUtils;
import ai.djl.pytorch.jni.JniUtils;
import ai.djl.training.GradientCollector;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

/** A TorchScript module whose methods are called by name; thread-safe. */
public final class TorchModule implements AutoCloseable {

    /** The engine allows for one gradient collector in a process. */
    private static final Object GRADIENTS = new Object();

    private final PtSymbolBlock block;

    private TorchModule(PtSymbolBlock block) {
        this.block = block;
    }

    /**
     * Loads a module.
     *
     * @param manager a manager of the PyTorch engine, which decides the device; closing it closes
     *     the module
     * @param archive what {@link TorchArchive#write} returned
     * @return the module
     */
    public static TorchModule load(NDManager manager, byte[] archive) {
        OperatorLibrary.load();
        try {
            // From a file: libtorch reads a stream twice and without inference mode.
            Path file = Files.createTempFile("kvquant", ".pt");
            try {
                Files.write(file, archive);
                return load(manager, file);
            } finally {
                Files.deleteIfExists(file);
            }
        } catch (IOException e) {
            throw new UncheckedIOException(
                    "The model's TorchScript module could not be written to "
                            + System.getProperty("java.io.tmpdir")
                            + "; set -Djava.io.tmpdir to a directory with free space.",
                    e);
        }
    }

    /**
     * Loads a module that someone traced.
     *
     * @param manager a manager of the PyTorch engine, which decides the device; closing it closes
     *     the module
     * @param file the TorchScript file
     * @return the module
     */
    public static TorchModule load(NDManager manager, Path file) {
        OperatorLibrary.load();
        return new TorchModule(
                JniUtils.loadModule(
                        (PtNDManager) manager, file, true, new String[0], new String[0], false));
    }

    /**
     * Calls the method forward as DJL's PyTorch engine does: the names of inputs say how they form
     * tuples and lists.
     *
     * @param inputs the inputs
     * @return the tensors that the method returned, in order, attached to the first input's manager
     */
    public NDList forward(NDList inputs) {
        JniUtils.setGraphExecutorOptimize(false);
        return IValueUtils.forward(block, inputs, false);
    }

    /**
     * Calls a method.
     *
     * @param manager the manager that the results are attached to
     * @param method the method's name
     * @param arguments NDArray (Tensor), NDList (List[Tensor]), Long or Integer (int), Double
     *     (float), Boolean (bool), long[] (List[int])
     * @return the tensors that the method returned, in order
     */
    public NDList run(NDManager manager, String method, Object... arguments) {
        // New shapes at every step: without this, libtorch would specialise the graph to each.
        JniUtils.setGraphExecutorOptimize(false);
        IValue[] values = new IValue[arguments.length];
        try {
            for (int i = 0; i < values.length; ++i) {
                values[i] = toIValue(arguments[i]);
            }
            try (IValue result = IValueUtils.runMethod(block, method, values)) {
                return result.toNDList((PtNDManager) manager);
            }
        } finally {
            for (IValue value : values) {
                if (value != null) {
                    value.close();
                }
            }
        }
    }

    /**
     * Calls a method whose code takes gradients, which a call of {@link #run} can not. Only one
     * thread at a time in the whole process can.
     *
     * @param manager the manager that the results are attached to
     * @param method the method's name
     * @param arguments its arguments, all of type Tensor
     * @return the tensors that the method returned, in order
     * @throws IllegalStateException if someone else in the process collects gradients
     */
    @SuppressWarnings("try")
    public NDList runWithGradients(NDManager manager, String method, NDArray... arguments) {
        JniUtils.setGraphExecutorOptimize(false);
        // The engine takes the method's name from an array that is no argument, as it takes the
        // manager of the results from the first one.
        try (NDArray name = manager.create(new Shape(0))) {
            name.setName("module_method:" + method);
            NDList inputs = new NDList(name);
            inputs.addAll(Arrays.asList(arguments));
            synchronized (GRADIENTS) {
                try (GradientCollector collector = manager.getEngine().newGradientCollector()) {
                    return IValueUtils.forward(block, inputs, true);
                }
            }
        }
    }

    private static IValue toIValue(Object argument) {
        if (argument instanceof NDArray) {
            return IValue.from((PtNDArray) argument);
        } else if (argument instanceof NDList) {
            return IValue.listFrom(
                    ((NDList) argument)
                            .stream().map(PtNDArray.class::cast).toArray(PtNDArray[]::new));
        } else if (argument instanceof Long || argument instanceof Integer) {
            return IValue.from(((Number) argument).longValue());
        } else if (argument instanceof Double) {
            return IValue.from((double) (Double) argument);
        } else if (argument instanceof Boolean) {
            return IValue.from((boolean) (Boolean) argument);
        } else if (argument instanceof long[]) {
            return IValue.listFrom((long[]) argument);
        }
        throw new IllegalArgumentException("No TorchScript type for " + argument.getClass());
    }

    /** {@inheritDoc} */
    @Override
    public void close() {
        block.close();
    }
}
