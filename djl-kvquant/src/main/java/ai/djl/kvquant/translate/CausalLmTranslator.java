/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.Model;
import ai.djl.modality.nlp.generate.CausalLMOutput;
import ai.djl.ndarray.NDList;
import ai.djl.translate.NoBatchifyTranslator;
import ai.djl.translate.TranslatorContext;

/**
 * The translator of DJL's TextGenerator. What stands for keys and values names whole sequences, so
 * that one pair of them is enough, whatever the number of layers.
 */
final class CausalLmTranslator implements NoBatchifyTranslator<NDList, CausalLMOutput> {

    private CausalLmTranslator() {}

    static CausalLmTranslator create(Model model) {
        CheckpointBlock.of(model);
        return new CausalLmTranslator();
    }

    /** {@inheritDoc} */
    @Override
    public NDList processInput(TranslatorContext context, NDList input) {
        return input;
    }

    /** {@inheritDoc} */
    @Override
    public CausalLMOutput processOutput(TranslatorContext context, NDList output) {
        // Logits, pairs of keys and values, hidden states.
        return new CausalLMOutput(
                output.get(0), output.get(output.size() - 1), output.subNDList(1, 3));
    }
}
