/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.llama.TinyModel.Tensor;
import ai.djl.kvquant.safetensors.TensorEntry;
import ai.djl.ndarray.types.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class CheckpointTest {

    @TempDir Path dir;

    private final TinyModel model = new TinyModel();

    @Test
    void mapsEveryTensorOfASingleFile() throws Exception {
        model.write(dir);
        Checkpoint checkpoint = model.open(dir);
        assertContents(checkpoint);
        assertEquals(new ArrayList<>(model.tensors.keySet()), checkpoint.names());
        assertEquals(Map.of(DataType.FLOAT32, 12), checkpoint.dtypes());
        assertEquals(4 * (2 * 80 + 3 * 8 + 2 * 64 + 2 * 32 + 3 * 96), checkpoint.totalBytes());
    }

    @Test
    void namesComeInTheOrderOfComputationWhateverTheFileOrder() throws Exception {
        List<String> order = new ArrayList<>(model.tensors.keySet());
        Tensor embedding = model.tensors.remove(CheckpointLayout.EMBEDDING);
        model.tensors.put(CheckpointLayout.EMBEDDING, embedding);
        model.write(dir);
        assertEquals(order, model.open(dir).names());
        assertContents(model.open(dir));
    }

    @Test
    void mapsShardsByTheirIndex() throws Exception {
        model.writeShards(dir, "model.safetensors.index.json");
        Checkpoint checkpoint = model.open(dir);
        assertContents(checkpoint);
        assertEquals(dir.resolve(TinyModel.shard(2)), checkpoint.entry(TinyModel.Q_PROJ).file());
    }

    @Test
    void anIndexMayLeaveOutOtherFiles() throws Exception {
        model.writeShards(dir, "model.safetensors.index.json");
        Files.write(dir.resolve("consolidated.safetensors"), new byte[3]);
        assertContents(model.open(dir));
    }

    @Test
    void mapsACompleteSetOfShardsWithoutIndex() throws Exception {
        model.writeShards(dir, null);
        Files.write(dir.resolve("kvquant-int2.safetensors"), new byte[3]);
        assertContents(model.open(dir));
    }

    @Test
    void mapsTheOnlyFileUnderAnyName() throws Exception {
        TinyModel.write(dir.resolve("weights.safetensors"), model.tensors);
        assertContents(model.open(dir));
    }

    @Test
    void typesMayBeMixed() throws Exception {
        model.add("BF16", TinyModel.Q_PROJ, 8, 8);
        model.add("F16", "model.norm.weight", 8);
        model.write(dir);
        Checkpoint checkpoint = model.open(dir);
        assertContents(checkpoint);
        assertEquals(
                Map.of(DataType.FLOAT32, 10, DataType.FLOAT16, 1, DataType.BFLOAT16, 1),
                checkpoint.dtypes());
    }

    @Test
    void biasesAndUnusualGeometryAreExpectedAsConfigured() throws Exception {
        model.config.addProperty("attention_bias", true);
        model.config.addProperty("mlp_bias", true);
        model.config.addProperty("head_dim", 6);
        String attention = "model.layers.0.self_attn.";
        model.add(attention + "q_proj.weight", 12, 8);
        model.add(attention + "k_proj.weight", 6, 8);
        model.add(attention + "v_proj.weight", 6, 8);
        model.add(attention + "o_proj.weight", 8, 12);
        model.add(attention + "q_proj.bias", 12);
        model.add(attention + "k_proj.bias", 6);
        model.add(attention + "v_proj.bias", 6);
        model.add(attention + "o_proj.bias", 8);
        model.add("model.layers.0.mlp.gate_proj.bias", 12);
        model.add("model.layers.0.mlp.up_proj.bias", 12);
        model.add("model.layers.0.mlp.down_proj.bias", 8);
        model.write(dir);
        assertContents(model.open(dir));
    }

    @Test
    void tiedEmbeddingsNeedNoOutputProjection() throws Exception {
        model.config.addProperty("tie_word_embeddings", true);
        model.tensors.remove(CheckpointLayout.OUTPUT);
        model.write(dir);
        assertContents(model.open(dir));
    }

    @Test
    void aStoredCopyOfTiedEmbeddingsIsDropped() throws Exception {
        model.config.addProperty("tie_word_embeddings", true);
        Tensor embedding = model.tensors.get(CheckpointLayout.EMBEDDING);
        model.tensors.put(CheckpointLayout.OUTPUT, embedding);
        model.write(dir);
        Checkpoint checkpoint = model.open(dir);
        model.tensors.remove(CheckpointLayout.OUTPUT);
        assertContents(checkpoint);
        assertEquals(11, checkpoint.names().size());
    }

    @Test
    void storedFrequenciesOfOldCheckpointsAreIgnored() throws Exception {
        model.add("model.layers.0.self_attn.rotary_emb.inv_freq", 2);
        model.write(dir);
        Checkpoint checkpoint = model.open(dir);
        assertEquals(12, checkpoint.names().size());
    }

    @Test
    void partsOfATensorAreMapped() throws Exception {
        model.write(dir);
        Checkpoint checkpoint = model.open(dir);
        byte[] data = model.tensors.get(TinyModel.Q_PROJ).data();
        ByteBuffer part = checkpoint.bytes(TinyModel.Q_PROJ, 32, 64);
        assertEquals(ByteBuffer.wrap(data, 32, 64), part);
        IllegalArgumentException error =
                assertThrows(
                        IllegalArgumentException.class,
                        () -> checkpoint.bytes(TinyModel.Q_PROJ, 200, 64));
        assertTrue(
                error.getMessage()
                        .startsWith("Bytes 200 to 264 are outside of " + TinyModel.Q_PROJ),
                error.getMessage());
    }

    @Test
    void unknownNamesAndLaterTruncationAreErrors() throws Exception {
        model.write(dir);
        Checkpoint checkpoint = model.open(dir);
        IllegalArgumentException unknown =
                assertThrows(IllegalArgumentException.class, () -> checkpoint.bytes("foo"));
        assertEquals("The checkpoint has no tensor foo.", unknown.getMessage());
        Path file = dir.resolve("model.safetensors");
        Files.write(file, new byte[100]);
        Exception truncated =
                assertThrows(java.io.IOException.class, () -> checkpoint.bytes(TinyModel.Q_PROJ));
        assertEquals(
                file + " was truncated after it was opened: " + TinyModel.Q_PROJ,
                truncated.getMessage());
    }

    private void assertContents(Checkpoint checkpoint) throws Exception {
        for (Map.Entry<String, Tensor> expected : model.tensors.entrySet()) {
            TensorEntry entry = checkpoint.entry(expected.getKey());
            assertArrayEquals(expected.getValue().shape(), entry.shape());
            ByteBuffer bytes = checkpoint.bytes(expected.getKey());
            assertEquals(0, bytes.position());
            assertEquals(ByteOrder.LITTLE_ENDIAN, bytes.order());
            assertTrue(bytes.isDirect() && bytes.isReadOnly());
            assertEquals(ByteBuffer.wrap(expected.getValue().data()), bytes, expected.getKey());
        }
        assertEquals(model.tensors.keySet(), checkpoint.entries().keySet());
    }
}
