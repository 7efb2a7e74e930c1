/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalLong;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class GenerationConfigTest {

    @TempDir private Path directory;

    private GenerationConfig read(String generation, String model) throws IOException {
        if (generation != null) {
            Files.writeString(directory.resolve("generation_config.json"), generation);
        }
        if (model != null) {
            Files.writeString(directory.resolve("config.json"), model);
        }
        return GenerationConfig.fromModelDirectory(directory);
    }

    @Test
    void readsTheDefaultsOfAModel() throws IOException {
        GenerationConfig config =
                read(
                        "{\"eos_token_id\": [128001, 128009], \"do_sample\": true, \"temperature\":"
                                + " 0.6, \"top_p\": 0.9, \"top_k\": 50, \"min_p\": null,"
                                + " \"repetition_penalty\": 1.1, \"max_new_tokens\": 64,"
                                + " \"transformers_version\": \"4.42\"}",
                        "{\"eos_token_id\": 7}");
        assertEquals(Set.of(128001, 128009), config.getEosTokenIds());
        assertTrue(config.isSampling());
        assertEquals(0.6f, config.getTemperature());
        assertEquals(0.9f, config.getTopP());
        assertEquals(50, config.getTopK());
        assertEquals(0, config.getMinP());
        assertEquals(1.1f, config.getRepetitionPenalty());
        assertEquals(64, config.getMaxNewTokens());
    }

    @Test
    void samplingValuesOfTheFileWaitForDoSample() throws IOException {
        GenerationConfig config =
                read("{\"temperature\": 0.6, \"top_p\": 0.9}", "{\"eos_token_id\": [7, 8]}");
        assertFalse(config.isSampling());
        assertEquals(Set.of(7, 8), config.getEosTokenIds());
        GenerationConfig sampling = config.toBuilder().optDoSample(true).build();
        assertTrue(sampling.isSampling());
        assertEquals(0.6f, sampling.getTemperature());
        assertTrue(config.toBuilder().optTopP(0.5f).build().isSampling());
    }

    @Test
    void readsConfigJsonAlone() throws IOException {
        assertEquals(Set.of(2), read(null, "{\"eos_token_id\": 2}").getEosTokenIds());
        assertEquals(Set.of(), read(null, "{\"eos_token_id\": null}").getEosTokenIds());
    }

    @Test
    void namesTheFileOfABadValue() {
        String message =
                assertThrows(
                                IllegalArgumentException.class,
                                () -> read("{\"temperature\": -1}", null))
                        .getMessage();
        assertTrue(
                message.contains("generation_config.json: temperature -1.0 is not valid"), message);
        IOException broken = assertThrows(IOException.class, () -> read("[1", null));
        assertTrue(broken.getMessage().contains("is not a JSON object"), broken.getMessage());
    }

    @Test
    void saysWhatIsMissing() {
        NoSuchFileException e =
                assertThrows(
                        NoSuchFileException.class,
                        () -> GenerationConfig.fromModelDirectory(directory));
        assertTrue(e.getMessage().contains("neither generation_config.json nor config.json"));
    }

    @Test
    void isGreedyUnlessSamplingIsAskedFor() {
        assertFalse(GenerationConfig.builder().build().isSampling());
        assertTrue(GenerationConfig.builder().optTemperature(0.1f).build().isSampling());
        assertTrue(GenerationConfig.builder().optDoSample(true).build().isSampling());
        assertTrue(GenerationConfig.builder().optTopK(5).build().isSampling());
        assertTrue(GenerationConfig.builder().optMinP(0.1f).build().isSampling());
        assertFalse(GenerationConfig.builder().optTopK(0).optTopP(1).build().isSampling());
        assertFalse(
                GenerationConfig.builder().optTemperature(0).optTopP(0.5f).build().isSampling());
        assertFalse(
                GenerationConfig.builder().optTopP(0.5f).optTemperature(0).build().isSampling());
    }

    @Test
    void takesValuesFromAMap() {
        Map<String, Object> request = new HashMap<>();
        request.put("max_new_tokens", "12");
        request.put("temperature", 0.5);
        request.put("seed", 123456789012L);
        request.put("stop", "###");
        request.put("top_logprobs", 2.0);
        request.put("top_k", null);
        request.put("stream", true);
        GenerationConfig config = GenerationConfig.builder().configure(request).build();
        assertEquals(12, config.getMaxNewTokens());
        assertTrue(config.isSampling());
        assertEquals(OptionalLong.of(123456789012L), config.getSeed());
        assertEquals(List.of("###"), config.getStopStrings());
        assertTrue(config.isLogProbs());
        assertEquals(2, config.getTopLogProbs());
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "temperature        | -0.5  | temperature -0.5 is not valid; it must be at least 0",
                "temperature        | NaN   | temperature NaN is not valid",
                "temperature        | warm  | temperature 'warm' is not valid: it must be a number",
                "top_k              | -2    | top_k -2 is not valid; it must be at least 1, or 0",
                "top_k              | 1.5   | top_k '1.5' is not valid: it must be a whole number",
                "top_p              | 0     | top_p 0.0 is not valid; it must be above 0",
                "top_p              | 1.01  | top_p 1.01 is not valid",
                "min_p              | 2     | min_p 2.0 is not valid; it must be from 0 to 1",
                "repetition_penalty | 0     | repetition_penalty 0.0 is not valid; it must be"
                        + " above",
                "max_new_tokens     | 0     | max_new_tokens 0 is not valid; it must be at least 1",
                "max_new_tokens     | 1e12  | it must be at most 2147483647",
                "eos_token_id       | -1    | eos_token_id -1 is not valid",
                "do_sample          | maybe | do_sample 'maybe' is not valid: it must be true or"
                        + " false",
                "top_logprobs       | 101   | top_logprobs 101 is not valid; it must be from 0 to"
                        + " 100",
                "stop               | ''    | A stop string is empty",
            })
    void refusesBadValues(String key, String value, String message) {
        String actual =
                assertThrows(
                                IllegalArgumentException.class,
                                () -> GenerationConfig.builder().configure(Map.of(key, value)))
                        .getMessage();
        assertTrue(actual.contains(message), actual);
    }
}
