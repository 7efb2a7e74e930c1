/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.Model;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.kvquant.engine.KvQuantTracedBlock;
import ai.djl.nn.Block;

/** Finds what translators work with: the block of a checkpoint of the engine KvQuant. */
final class CheckpointBlock {

    private CheckpointBlock() {}

    /**
     * Returns the block of a model.
     *
     * @throws IllegalArgumentException if it is a traced model, or one of another engine
     */
    static KvQuantBlock of(Model model) {
        Block block = model.getBlock();
        if (block instanceof KvQuantBlock checkpoint) {
            return checkpoint;
        }
        if (block instanceof KvQuantTracedBlock) {
            throw new IllegalArgumentException(
                    model.getName()
                            + " is a traced model, for which KvQuantTranslatorFactory has no"
                            + " translator but (NDList, NDList). Use (NDList, CausalLMOutput) with"
                            + " PtGptTranslatorFactory of ai.djl.pytorch:pytorch-model-zoo, or load"
                            + " the safetensors checkpoint, which generates text.");
        }
        throw new IllegalArgumentException(
                "KvQuantTranslatorFactory needs a model of the engine KvQuant, but "
                        + model.getName()
                        + " is of another; add optEngine(\"KvQuant\").");
    }
}
