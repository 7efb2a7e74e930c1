/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.kvquant.generate.BatchLimits;
import ai.djl.kvquant.generate.BatchScheduler;
import ai.djl.kvquant.generate.DecodingBatch;
import ai.djl.kvquant.generate.LanguageModel;
import ai.djl.kvquant.llama.LlamaLanguageModel;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.util.PairList;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * The block of a loaded model; thread-safe.
 *
 * <p>Programs that generate use {@link #languageModel}. As a plain block it maps token ids INT64
 * {@code [batch, tokens]} to the logits FLOAT32 {@code [batch, vocabulary]} that follow the last
 * token of each row. With position ids, an attention mask and past keys and values behind them it
 * follows DJL's contract for causal language models, as its {@code TextGenerator} and {@code
 * PtGptTranslator} use it; in place of keys and values it returns what stands for sequences of the
 * cache, freed when the manager of the token ids is closed.
 */
public final class KvQuantBlock extends CachedBlock {

    private final LlamaLanguageModel model;
    private final BatchScheduler scheduler;

    KvQuantBlock(LlamaLanguageModel model, HandleOptions options, BatchLimits limits) {
        super(
                new SequenceHandles(
                        new LlamaRunner(model, options.promptLogits()), options.keepHandles()));
        this.model = model;
        scheduler = new BatchScheduler(model, limits);
    }

    /**
     * Returns the language model, with which tokens are generated step by step.
     *
     * @return the model, closed with the DJL model
     */
    public LanguageModel languageModel() {
        return model;
    }

    /**
     * Returns the scheduler that decodes the requests of all threads and predictors together.
     *
     * @return the scheduler, closed with the DJL model
     */
    public BatchScheduler scheduler() {
        return scheduler;
    }

    @Override
    NDList compute(NDList inputs) {
        if (inputs.isEmpty()) {
            // A translator that generates by itself has nothing for the block to do.
            return new NDList();
        }
        if (inputs.size() > 2) {
            return computeByContract(inputs);
        }
        NDArray ids = inputs.get(0);
        try (DecodingBatch batch = model.prefill(prompts(ids))) {
            NDArray logits = batch.logits();
            // DJL's contract: outputs live as long as the inputs.
            logits.attach(ids.getManager());
            return new NDList(logits);
        }
    }

    private static List<int[]> prompts(NDArray ids) {
        Shape shape = ids.getShape();
        if (ids.getDataType() != DataType.INT64 || shape.dimension() != 2 || shape.size() == 0) {
            throw new IllegalArgumentException(
                    "Token ids must be INT64 [batch, tokens] with at least one token, not "
                            + ids.getDataType()
                            + " "
                            + shape
                            + ".");
        }
        int tokens = Math.toIntExact(shape.get(1));
        int[] all = Arrays.stream(ids.toLongArray()).mapToInt(CausalInputs::tokenId).toArray();
        List<int[]> prompts = new ArrayList<>();
        for (int from = 0; from < all.length; from += tokens) {
            prompts.add(Arrays.copyOfRange(all, from, from + tokens));
        }
        return prompts;
    }

    /** {@inheritDoc} */
    @Override
    public Shape[] getOutputShapes(Shape[] inputShapes) {
        return new Shape[] {new Shape(inputShapes[0].get(0), model.vocabularySize())};
    }

    /** {@inheritDoc} */
    @Override
    public PairList<String, Shape> describeInput() {
        PairList<String, Shape> inputs = new PairList<>();
        inputs.add("input_ids", new Shape(-1, -1));
        return inputs;
    }
}
