/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.torch;

import ai.djl.Device;
import ai.djl.engine.Engine;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;

/** A layer's packed parameters on a GPU, from {@link #hold} until {@link #close}. */
final class HeldParams implements AutoCloseable {

    private static final String METHODS =
            """
              def hold(self: __torch__.M, params: Tensor, device: Tensor) -> Tensor:
                return ops.kvquant.hold_params(params, device)
              def drop(self: __torch__.M, number: Tensor) -> Tensor:
                ops.kvquant.drop_params(number)
                return number
            """;

    private final long number;

    private HeldParams(long number) {
        this.number = number;
    }

    /**
     * Copies parameters to a GPU.
     *
     * @param params UINT8 [bytes] on the CPU; it must live until the copy is closed
     * @param device any tensor on the GPU
     */
    static HeldParams hold(NDArray params, NDArray device) {
        try (NDManager scope = Library.MANAGER.newSubManager()) {
            return new HeldParams(
                    Library.MODULE.run(scope, "hold", params, device).get(0).toLongArray()[0]);
        }
    }

    /** Frees the copy; a second call does nothing. */
    @Override
    public void close() {
        try (NDManager scope = Library.MANAGER.newSubManager()) {
            Library.MODULE.run(scope, "drop", scope.create(new long[] {number}));
        }
    }

    /** For the life of the process: copies are freed in whatever order managers are closed. */
    private static final class Library {
        static final NDManager MANAGER = Engine.getEngine("PyTorch").newBaseManager(Device.cpu());
        static final TorchModule MODULE = TorchModule.load(MANAGER, TorchArchive.write(METHODS));
    }
}
