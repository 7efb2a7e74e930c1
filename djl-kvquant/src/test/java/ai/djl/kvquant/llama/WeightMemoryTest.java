/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import ai.djl.Device;
import ai.djl.engine.Engine;
import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDManager;
import java.nio.file.Path;
import java.util.OptionalLong;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Weights that do not fit into memory are refused before any of them is made or converted. */
class WeightMemoryTest {

    private static final long GIB = 1L << 30;

    private static String refusal(WeightType type, boolean random) {
        return assertThrows(
                        IllegalArgumentException.class,
                        () ->
                                WeightMemory.require(
                                        24 * GIB, OptionalLong.of(22 * GIB), type, random))
                .getMessage();
    }

    @Test
    void refusesWhatDoesNotFit() {
        assertEquals(
                "The weights take 24.0 GiB of memory in fp16, but 22.0 GiB are free. Choose a"
                        + " smaller model, or a GPU (Device.gpu(), kvq --device gpu).",
                refusal(WeightType.FP16, true));
        assertEquals(
                "The weights take 24.0 GiB of memory in fp32, but 22.0 GiB are free. Leave dtype at"
                        + " auto, which reads them from their files as they are, or choose a smaller"
                        + " model, or a GPU (Device.gpu(), kvq --device gpu).",
                refusal(WeightType.FP32, false));
        WeightMemory.require(22 * GIB, OptionalLong.of(22 * GIB), WeightType.FP16, true);
        WeightMemory.require(22 * GIB, OptionalLong.empty(), WeightType.FP16, true);
    }

    @Test
    void countsWeightsThatAreMade() {
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager(Device.cpu());
                Operators operators = new Operators(manager)) {
            LlamaConfig config = RandomModel.LLAMA_2_13B.config();
            RandomWeights source = new RandomWeights(manager, operators, config, WeightType.FP16);
            // LLaMA-2 13B has 13 015 864 320 weights.
            assertEquals(
                    2 * 13_015_864_320L,
                    new LlamaWeights(manager, operators, source, false).memory(config));
        }
    }

    @Test
    void countsOfFilesOnlyWhatIsConverted(@TempDir Path directory) throws Exception {
        TinyModel model = new TinyModel();
        model.write(directory);
        Checkpoint checkpoint = model.open(directory);
        try (NDManager manager = Engine.getEngine("PyTorch").newBaseManager(Device.cpu());
                Operators operators = new Operators(manager)) {
            for (WeightType type : WeightType.values()) {
                CheckpointWeights source =
                        new CheckpointWeights(manager, operators, checkpoint, type);
                boolean asStored = type == WeightType.AUTO || type == WeightType.FP32;
                assertEquals(
                        asStored ? 0 : 2 * 664,
                        new LlamaWeights(manager, operators, source, false)
                                .memory(model.parsedConfig()));
            }
        }
    }
}
