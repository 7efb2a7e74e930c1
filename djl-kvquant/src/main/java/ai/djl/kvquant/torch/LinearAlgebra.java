/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.torch;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;

/** What NDArray lacks; thread-safe. */
public final class LinearAlgebra implements AutoCloseable {

    private static final String METHODS =
            """
              def load(self: __torch__.M, w: List[Tensor]) -> Tensor:
                self.w = w
                return torch.zeros([1])
              def eigh(self: __torch__.M, s: Tensor) -> Tuple[Tensor, Tensor]:
                values, vectors, = torch.linalg_eigh(s, "L")
                return (values, vectors)
            """;

    private final TorchModule module;

    /**
     * Loads the functions.
     *
     * @param manager a manager of the PyTorch engine
     */
    public LinearAlgebra(NDManager manager) {
        module = TorchModule.load(manager, TorchArchive.write(METHODS));
    }

    /**
     * Decomposes symmetric matrices.
     *
     * @param matrices {@code [..., n, n]}
     * @return eigenvalues {@code [..., n]}, ascending, and eigenvectors {@code [..., n, n]}, the
     *     columns; attached to the matrices' manager
     */
    public NDList eigh(NDArray matrices) {
        return module.run(matrices.getManager(), "eigh", matrices);
    }

    /** Frees the functions. */
    @Override
    public void close() {
        module.close();
    }
}
