/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.engine.Engine;
import ai.djl.kvquant.llama.ReferenceModel.Change;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import ai.djl.training.GradientCollector;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Gradients against finite differences of a model in double precision. */
class LlamaGradientsTest {

    private static final Path CHECKPOINTS =
            Path.of("")
                    .toAbsolutePath()
                    .resolveSibling("tests/src/test/resources/golden/checkpoints");
    private static final double STEP = 1e-4;

    private final Random random = new Random(3);

    private static LlamaModel load(NDManager manager, String name) throws Exception {
        return LlamaModel.load(manager, CHECKPOINTS.resolve(name), WeightType.AUTO);
    }

    /** Of all layers, the first one first. */
    private static List<LlamaGradients.Output> gradients(
            LlamaModel model, NDManager manager, int[] tokens) {
        List<NDArray> inputs = new ArrayList<>();
        try (LlamaLayers layers = new LlamaLayers(model, tokens.length)) {
            inputs.add(layers.embed(manager, tokens));
            for (int layer = 0; layer < model.config().numLayers(); ++layer) {
                inputs.add(layers.run(manager, layer, inputs.get(layer)).hidden());
            }
        }
        LlamaGradients gradients = new LlamaGradients(model);
        List<LlamaGradients.Output> outputs = new ArrayList<>();
        int last = inputs.size() - 1;
        NDArray gradient = gradients.ofLoss(manager, inputs.get(last), tokens);
        for (int layer = last - 1; layer >= 0; --layer) {
            outputs.add(gradients.ofLayer(manager, layer, inputs.get(layer), gradient));
            gradient = outputs.get(outputs.size() - 1).input();
        }
        Collections.reverse(outputs);
        return outputs;
    }

    private static double difference(ReferenceModel reference, int[] tokens, Change change) {
        Change other =
                new Change(
                        change.layer(),
                        change.ofKeys(),
                        change.token(),
                        change.channel(),
                        -change.amount());
        return (reference.loss(tokens, change) - reference.loss(tokens, other))
                / (2 * change.amount());
    }

    /** 300 tokens are more than a block of the loss. */
    @ParameterizedTest
    @CsvSource({
        "f32, 20, 24",
        "f32, 300, 2",
        "attention-bias, 20, 24",
        "mlp-bias, 20, 24",
        "gqa3-tied, 20, 24",
        "rope-yarn, 20, 24"
    })
    void gradientsAreFiniteDifferencesOfTheLoss(String name, int length, int samples)
            throws Exception {
        ReferenceModel reference = new ReferenceModel(CHECKPOINTS.resolve(name));
        int[] tokens = random.ints(length, 0, reference.config().vocabSize()).toArray();
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model = load(manager, name)) {
            List<LlamaGradients.Output> outputs = gradients(model, manager, tokens);
            for (int layer = 0; layer < outputs.size(); ++layer) {
                for (boolean ofKeys : new boolean[] {true, false}) {
                    LlamaGradients.Output output = outputs.get(layer);
                    float[] actual = (ofKeys ? output.keys() : output.values()).toFloatArray();
                    int channels = actual.length / length;
                    double largest = 0;
                    for (float value : actual) {
                        largest = Math.max(largest, Math.abs(value));
                    }
                    for (int i = 0; i < samples; ++i) {
                        // the last token is read by itself only, the first one by all
                        int token = i == 0 ? length - 2 : random.nextInt(length - 1);
                        int channel = random.nextInt(channels);
                        Change change = new Change(layer, ofKeys, token, channel, STEP);
                        double expected = difference(reference, tokens, change);
                        double found = actual[token * channels + channel];
                        assertEquals(expected, found, 2e-4 * largest, change.toString());
                    }
                }
            }
        }
    }

    @Test
    void oneCollectorAtATime() throws Exception {
        int[] tokens = random.ints(8, 0, 256).toArray();
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model = load(manager, "f32")) {
            NDArray hidden = manager.ones(new Shape(8, model.config().hiddenSize()));
            LlamaGradients gradients = new LlamaGradients(model);
            GradientCollector other = manager.getEngine().newGradientCollector();
            try {
                assertThrows(
                        IllegalStateException.class,
                        () -> gradients.ofLoss(manager, hidden, tokens));
            } finally {
                other.close();
            }
            assertEquals(hidden.getShape(), gradients.ofLoss(manager, hidden, tokens).getShape());
        }
    }

    @Test
    void hiddenStatesMustBeThoseOfTheTokens() throws Exception {
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager();
                LlamaModel model = load(manager, "f32")) {
            NDArray hidden = manager.ones(new Shape(8, model.config().hiddenSize()));
            for (int length : new int[] {1, 7, 9}) {
                Exception e =
                        assertThrows(
                                IllegalArgumentException.class,
                                () ->
                                        new LlamaGradients(model)
                                                .ofLoss(manager, hidden, new int[length]));
                assertTrue(e.getMessage().contains(length + " token ids"), e.getMessage());
            }
        }
    }
}
