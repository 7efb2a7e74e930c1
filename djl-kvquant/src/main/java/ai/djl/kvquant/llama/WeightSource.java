/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.ndarray.NDArray;
import java.io.IOException;

/** Where a model's tensors come from; each is asked for once. */
interface WeightSource {

    /** Whether there is a tensor of this name. */
    boolean has(String name);

    /** The tensor, on the device and in the type in which it is kept. */
    NDArray tensor(String name) throws IOException;

    /** Bytes of memory that the tensor takes on a CPU; 0 if it is used as it lies in its file. */
    long memory(String name);
}
