/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.MalformedModelException;
import ai.djl.ndarray.types.DataType;
import com.google.gson.JsonElement;
import com.google.gson.JsonParser;
import java.io.FileNotFoundException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.OptionalInt;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvFileSource;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class LlamaConfigTest {

    @Test
    void readsEveryField(@TempDir Path dir) throws Exception {
        Files.writeString(
                dir.resolve("config.json"),
                """
                {"architectures": ["LlamaForCausalLM"], "attention_bias": true, "mlp_bias": true,
                 "bos_token_id": 1, "eos_token_id": [2, 7], "head_dim": 16, "hidden_act": "silu",
                 "hidden_size": 576, "intermediate_size": 1536, "max_position_embeddings": 8192,
                 "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
                 "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_scaling": null,
                 "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
                 "unknown_key": {"is": "ignored"}, "vocab_size": 49152}
                """);
        LlamaConfig config = LlamaConfig.load(dir);
        assertEquals("LlamaForCausalLM", config.architecture());
        assertEquals(576, config.hiddenSize());
        assertEquals(1536, config.intermediateSize());
        assertEquals(30, config.numLayers());
        assertEquals(9, config.numHeads());
        assertEquals(3, config.numKvHeads());
        assertEquals(3, config.queryGroups());
        assertEquals(16, config.headDim());
        assertEquals(49152, config.vocabSize());
        assertEquals(8192, config.maxPositionEmbeddings());
        assertEquals(1e-5, config.rmsNormEps());
        assertTrue(config.tieWordEmbeddings());
        assertTrue(config.attentionBias());
        assertTrue(config.mlpBias());
        assertEquals(DataType.BFLOAT16, config.dtype());
        assertEquals(100000, config.rope().theta());
        assertEquals(OptionalInt.of(1), config.bosTokenId());
        assertEquals(List.of(2, 7), config.eosTokenIds());
    }

    @Test
    void absentKeysHaveTheDefaultsOfTransformers() throws Exception {
        TinyModel model = new TinyModel();
        model.config.remove("num_key_value_heads");
        model.config.remove("torch_dtype");
        LlamaConfig config = model.parsedConfig();
        assertEquals(2, config.numKvHeads());
        assertEquals(4, config.headDim());
        assertEquals(DataType.FLOAT32, config.dtype());
        assertEquals(10000, config.rope().theta());
        assertFalse(config.tieWordEmbeddings());
        assertFalse(config.attentionBias());
        assertFalse(config.mlpBias());
        assertEquals(OptionalInt.of(1), config.bosTokenId());
        assertEquals(List.of(2), config.eosTokenIds());
        model.config.add("bos_token_id", JsonParser.parseString("null"));
        model.config.add("eos_token_id", JsonParser.parseString("null"));
        assertEquals(OptionalInt.empty(), model.parsedConfig().bosTokenId());
        assertEquals(List.of(), model.parsedConfig().eosTokenIds());
    }

    @Test
    void theNewDtypeKeyWins() throws Exception {
        TinyModel model = new TinyModel();
        model.config.addProperty("dtype", "float16");
        assertEquals(DataType.FLOAT16, model.parsedConfig().dtype());
    }

    @Test
    void oldFilesAreKnownByTheirModelType() throws Exception {
        TinyModel model = new TinyModel();
        model.config.remove("architectures");
        model.config.addProperty("model_type", "llama");
        assertEquals("LlamaForCausalLM", model.parsedConfig().architecture());
    }

    @ParameterizedTest
    @ValueSource(strings = {"null", "32", "4096"})
    void mistralWithoutAnActiveWindowIsAccepted(String window) throws Exception {
        TinyModel model = new TinyModel();
        model.config.add("architectures", JsonParser.parseString("['MistralForCausalLM']"));
        model.config.add("sliding_window", JsonParser.parseString(window));
        assertEquals("MistralForCausalLM", model.parsedConfig().architecture());
    }

    @ParameterizedTest
    @CsvFileSource(resources = "config-errors.csv", delimiter = '|', quoteCharacter = '`')
    void namesTheKeyThatIsWrong(String key, String value, String message) {
        TinyModel model = new TinyModel();
        model.config.add(key, JsonParser.parseString(value));
        assertMessage(message, model);
    }

    @Test
    void contradictoryScalingsAreRefused() {
        TinyModel model = new TinyModel();
        model.config.add("rope_scaling", json("{'type': 'linear', 'factor': 2.0}"));
        model.config.add("rope_parameters", json("{'rope_type': 'default'}"));
        assertMessage("rope_scaling and rope_parameters disagree", model);
    }

    @Test
    void activeSlidingWindowsAreRefused() {
        TinyModel model = new TinyModel();
        model.config.add("architectures", json("['MistralForCausalLM']"));
        model.config.addProperty("sliding_window", 31);
        assertMessage("sliding_window must be null or at least max_position_embeddings 32", model);
        model.config.remove("sliding_window");
        model.config.addProperty("max_position_embeddings", 32768);
        assertMessage("sliding_window is missing, which for MistralForCausalLM means 4096", model);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            textBlock =
                    """
                    ``                     | is empty
                    {                      | is not valid JSON
                    {"hidden_size": 8,}    | is not valid JSON
                    {hidden_size: 8}       | is not valid JSON
                    {} {}                  | is not valid JSON
                    [1, 2]                 | must hold a JSON object, not [1,2]
                    null                   | must hold a JSON object, not null
                    """,
            quoteCharacter = '`')
    void brokenJsonIsRefused(String text, String message, @TempDir Path dir) throws Exception {
        Path file = Files.writeString(dir.resolve("config.json"), text);
        MalformedModelException error =
                assertThrows(MalformedModelException.class, () -> LlamaConfig.load(dir));
        assertTrue(error.getMessage().startsWith(file + " " + message), error.getMessage());
        assertFalse(error.getMessage().contains("\n"), error.getMessage());
    }

    @Test
    void filesThatAreNotUtf8AreRefused(@TempDir Path dir) throws Exception {
        Files.write(dir.resolve("config.json"), new byte[] {'{', (byte) 0xff, '}'});
        MalformedModelException error =
                assertThrows(MalformedModelException.class, () -> LlamaConfig.load(dir));
        assertTrue(error.getMessage().endsWith("config.json is not valid UTF-8."));
    }

    @Test
    void missingFilesAreNotFound(@TempDir Path dir) {
        FileNotFoundException error =
                assertThrows(FileNotFoundException.class, () -> LlamaConfig.load(dir));
        assertTrue(error.getMessage().startsWith("No config.json in " + dir));
        Path absent = dir.resolve("absent");
        error = assertThrows(FileNotFoundException.class, () -> LlamaConfig.load(absent));
        assertEquals("No model directory " + absent + ".", error.getMessage());
    }

    private static JsonElement json(String text) {
        return JsonParser.parseString(text);
    }

    private static void assertMessage(String expected, TinyModel model) {
        MalformedModelException error =
                assertThrows(MalformedModelException.class, model::parsedConfig);
        assertTrue(error.getMessage().startsWith("config.json: "), error.getMessage());
        assertTrue(error.getMessage().contains(expected), error.getMessage());
    }
}
