/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.kvquant.safetensors.TensorEntry;
import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.io.IOException;
import java.nio.ByteBuffer;

/** A checkpoint's tensors: on a CPU without a copy where the type stays, on a GPU copied there. */
final class CheckpointWeights implements WeightSource {

    private final NDManager manager;
    private final Operators operators;
    private final Checkpoint checkpoint;
    private final WeightType type;

    /**
     * Prepares to read.
     *
     * @param type the type of all tensors; AUTO: each as it is stored
     */
    CheckpointWeights(
            NDManager manager, Operators operators, Checkpoint checkpoint, WeightType type) {
        this.manager = manager;
        this.operators = operators;
        this.checkpoint = checkpoint;
        this.type = type;
    }

    @Override
    public boolean has(String name) {
        return checkpoint.entries().containsKey(name);
    }

    @Override
    public NDArray tensor(String name) throws IOException {
        TensorEntry entry = checkpoint.entry(name);
        WeightType stored = WeightType.of(entry.dtype());
        String from = stored.tensorType();
        String to = type == WeightType.AUTO ? from : type.tensorType();
        ByteBuffer bytes = checkpoint.bytes(name);
        Shape shape = new Shape(entry.shape());
        if (operators.onGpu()) {
            return operators.upload(manager, bytes, from, to, shape);
        }
        NDArray tensor = operators.wrap(manager, bytes, from, shape);
        return to.equals(from) ? tensor : operators.convert(manager, tensor, to);
    }

    @Override
    public long memory(String name) {
        TensorEntry entry = checkpoint.entry(name);
        boolean asStored = type == WeightType.AUTO || type == WeightType.of(entry.dtype());
        return asStored ? 0 : new Shape(entry.shape()).size() * type.bytes();
    }
}
