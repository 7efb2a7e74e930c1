/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.params.provider.Arguments.arguments;

import ai.djl.MalformedModelException;
import ai.djl.kvquant.safetensors.RawSafetensors;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** Damaged checkpoints: one way each, and the message that must name it. */
class CheckpointErrorTest {

    private static final String SINGLE = "model.safetensors";
    private static final String INDEX = "model.safetensors.index.json";

    @TempDir Path dir;

    /** Writes the tiny model with one thing wrong. */
    private interface Damage {
        void apply(TinyModel model, Path dir) throws IOException;
    }

    @ParameterizedTest(name = "{0}")
    @MethodSource({"tensorSets", "brokenFiles", "brokenShards"})
    void namesFileTensorAndProblem(String name, Damage damage, String message) throws Exception {
        TinyModel model = new TinyModel();
        damage.apply(model, dir);
        MalformedModelException error =
                assertThrows(MalformedModelException.class, () -> model.open(dir));
        assertTrue(error.getMessage().contains(message), error.getMessage());
        assertTrue(error.getMessage().contains(dir.toString()), error.getMessage());
        assertFalse(error.getMessage().contains("\n"), error.getMessage());
    }

    static Stream<Arguments> tensorSets() {
        String bias = "model.layers.0.self_attn.q_proj.bias";
        return Stream.of(
                damage(
                        "missing tensor",
                        SINGLE
                                + ": tensor "
                                + TinyModel.Q_PROJ
                                + " [8, 8] is missing; config.json asks for 12 tensors, 11",
                        model -> model.tensors.remove(TinyModel.Q_PROJ)),
                damage(
                        "missing layer",
                        "tensor model.layers.1.input_layernorm.weight [8] is missing, and 8 more",
                        model -> model.config.addProperty("num_hidden_layers", 2)),
                damage(
                        "missing output",
                        "config.json needs tie_word_embeddings true",
                        model -> model.tensors.remove(CheckpointLayout.OUTPUT)),
                damage(
                        "missing bias",
                        "tensor " + bias + " [8] is missing, and 3 more",
                        model -> model.config.addProperty("attention_bias", true)),
                damage(
                        "surplus tensor",
                        SINGLE
                                + ": tensor foo [3] is no part of a LlamaForCausalLM as config.json"
                                + " describes it; if config.json and the weights are of different"
                                + " models, download both again.",
                        model -> model.add("foo", 3)),
                damage(
                        "surplus bias",
                        "tensor "
                                + bias
                                + " [8] is no part of a LlamaForCausalLM as config.json"
                                + " describes it; if it belongs to the model, config.json needs"
                                + " attention_bias true",
                        model -> model.add(bias, 8)),
                damage(
                        "surplus layer",
                        "tensor model.layers.1.mlp.up_proj.weight [12, 8] is no part",
                        model -> model.add("model.layers.1.mlp.up_proj.weight", 12, 8)),
                damage(
                        "wrong shape",
                        "tensor "
                                + TinyModel.Q_PROJ
                                + " has the shape [8, 9], but config.json"
                                + " makes it [8, 8]",
                        model -> model.add(TinyModel.Q_PROJ, 8, 9)),
                damage(
                        "wrong rank",
                        "tensor model.norm.weight has the shape [1, 8], but config.json makes it"
                                + " [8]",
                        model -> model.add("model.norm.weight", 1, 8)),
                damage(
                        "transposed",
                        "k_proj.weight has the shape [8, 4], but config.json makes it [4, 8]",
                        model -> model.add("model.layers.0.self_attn.k_proj.weight", 8, 4)),
                damage(
                        "integer weights",
                        "tensor "
                                + TinyModel.Q_PROJ
                                + " has the dtype int32, which is not supported",
                        model -> model.add("I32", TinyModel.Q_PROJ, 8, 8)),
                damage(
                        "8-bit floats",
                        "tensor "
                                + TinyModel.Q_PROJ
                                + " has the dtype F8_E4M3, which is not"
                                + " supported; weights must be F32, F16 or BF16",
                        model -> model.add("F8_E4M3", TinyModel.Q_PROJ, 8, 8)),
                damage(
                        "untied copy",
                        "tensor lm_head.weight differs from model.embed_tokens.weight",
                        model -> model.config.addProperty("tie_word_embeddings", true)),
                damage(
                        "tied copy of another type",
                        "tensor lm_head.weight differs from model.embed_tokens.weight",
                        model -> {
                            model.config.addProperty("tie_word_embeddings", true);
                            model.add("F16", CheckpointLayout.OUTPUT, 10, 8);
                        }));
    }

    static Stream<Arguments> brokenFiles() {
        return Stream.of(
                arguments(
                        "half the data",
                        (Damage)
                                (model, dir) -> {
                                    model.write(dir);
                                    Path file = dir.resolve(SINGLE);
                                    byte[] bytes = Files.readAllBytes(file);
                                    Files.write(file, Arrays.copyOf(bytes, bytes.length - 100));
                                },
                        "is truncated: tensor lm_head.weight ends at byte"),
                arguments(
                        "broken header",
                        (Damage)
                                (model, dir) ->
                                        RawSafetensors.write(
                                                dir.resolve(SINGLE), "[]", new byte[8]),
                        "the header is not a valid JSON object of tensors"));
    }

    static Stream<Arguments> brokenShards() {
        return Stream.of(
                index(
                        "missing shard",
                        "places tensor "
                                + TinyModel.Q_PROJ
                                + " in "
                                + TinyModel.shard(2)
                                + ", but there is no such file",
                        dir -> Files.delete(dir.resolve(TinyModel.shard(2)))),
                index(
                        "tensor in no shard",
                        "places tensor bar in " + TinyModel.shard(1) + ", which does not hold it.",
                        dir ->
                                replace(
                                        dir,
                                        "\"lm_head.weight\"",
                                        "\"bar\":\""
                                                + TinyModel.shard(1)
                                                + "\",\"lm_head.weight\"")),
                index(
                        "tensor in another shard",
                        ", which does not hold it; ",
                        dir ->
                                replace(
                                        dir,
                                        TinyModel.Q_PROJ + "\":\"" + TinyModel.shard(2),
                                        TinyModel.Q_PROJ + "\":\"" + TinyModel.shard(1))),
                index(
                        "tensor not in the index",
                        "holds tensor lm_head.weight, which " + INDEX + " does not name",
                        dir ->
                                replace(
                                        dir,
                                        ",\"lm_head.weight\":\"" + TinyModel.shard(2) + "\"",
                                        "")),
                index(
                        "tensor in both shards",
                        "hold tensor " + TinyModel.Q_PROJ,
                        dir ->
                                Files.copy(
                                        dir.resolve(TinyModel.shard(2)),
                                        dir.resolve(TinyModel.shard(1)),
                                        java.nio.file.StandardCopyOption.REPLACE_EXISTING)),
                index(
                        "shard outside of the directory",
                        "is not the name of a file beside it",
                        dir -> replace(dir, TinyModel.shard(2), "../x.safetensors")),
                index(
                        "no weight_map",
                        INDEX + ": weight_map is missing",
                        dir -> Files.writeString(dir.resolve(INDEX), "{\"metadata\":{}}")),
                index(
                        "wrong weight_map",
                        "weight_map.lm_head.weight must be a string, but is 5",
                        dir ->
                                Files.writeString(
                                        dir.resolve(INDEX),
                                        "{\"weight_map\":{\"lm_head.weight\":5}}")),
                index(
                        "broken index",
                        INDEX + " is not valid JSON",
                        dir -> Files.writeString(dir.resolve(INDEX), "{")),
                index(
                        "set of shards with a hole",
                        "holds 2 safetensors files that are no complete set of shards",
                        dir -> {
                            Files.delete(dir.resolve(INDEX));
                            Files.move(
                                    dir.resolve(TinyModel.shard(2)),
                                    dir.resolve("model-00003-of-00003.safetensors"));
                        }),
                index(
                        "unrelated files",
                        "a.safetensors does not fit",
                        dir -> {
                            Files.delete(dir.resolve(INDEX));
                            Files.write(dir.resolve("a.safetensors"), new byte[8]);
                        }));
    }

    @Test
    void weightsOfOtherFormatsGetAHint() throws Exception {
        Files.write(dir.resolve("pytorch_model.bin"), new byte[8]);
        FileNotFoundException error =
                assertThrows(FileNotFoundException.class, () -> new TinyModel().open(dir));
        assertEquals(
                "No *.safetensors in "
                        + dir
                        + ", only [pytorch_model.bin]; convert them to safetensors, in Python with"
                        + " AutoModelForCausalLM.from_pretrained(dir).save_pretrained(dir).",
                error.getMessage());
    }

    @Test
    void noWeightsAtAllAreNotFound() throws Exception {
        FileNotFoundException error =
                assertThrows(FileNotFoundException.class, () -> new TinyModel().open(dir));
        assertTrue(error.getMessage().startsWith("No *.safetensors in " + dir + "; "));
        Path absent = dir.resolve("absent");
        assertThrows(FileNotFoundException.class, () -> new TinyModel().open(absent));
    }

    private interface ModelDamage {
        void apply(TinyModel model);
    }

    private interface DirDamage {
        void apply(Path dir) throws IOException;
    }

    private static Arguments damage(String name, String message, ModelDamage damage) {
        Damage written =
                (model, dir) -> {
                    damage.apply(model);
                    model.write(dir);
                };
        return arguments(name, written, message);
    }

    private static Arguments index(String name, String message, DirDamage damage) {
        Damage written =
                (model, dir) -> {
                    model.writeShards(dir, INDEX);
                    damage.apply(dir);
                };
        return arguments(name, written, message);
    }

    private static void replace(Path dir, String from, String to) throws IOException {
        String text = Files.readString(dir.resolve(INDEX));
        assertTrue(text.contains(from), text);
        Files.writeString(dir.resolve(INDEX), text.replace(from, to));
    }
}
