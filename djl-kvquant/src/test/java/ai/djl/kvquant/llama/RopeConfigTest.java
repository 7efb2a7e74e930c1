/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;

/**
 * Frequencies against those of HuggingFace transformers. {@code rope-golden.json} holds each case's
 * configuration and says which version and call produced its numbers.
 */
class RopeConfigTest {

    @TestFactory
    List<DynamicTest> agreesWithTransformers() throws IOException {
        List<DynamicTest> tests = new ArrayList<>();
        for (JsonElement element : goldens()) {
            JsonObject golden = element.getAsJsonObject();
            tests.add(
                    DynamicTest.dynamicTest(
                            golden.get("name").getAsString(), () -> assertGolden(golden)));
        }
        assertTrue(tests.size() >= 12, "every kind of scaling must have its golden values");
        return tests;
    }

    @Test
    void dynamicHoldsUpToTheOriginalLengthOnly() throws Exception {
        TinyModel model = new TinyModel();
        model.config.add(
                "rope_scaling", JsonParser.parseString("{'type': 'dynamic', 'factor': 2.0}"));
        RopeConfig rope = model.parsedConfig().rope();
        assertEquals("dynamic", rope.type());
        assertEquals(32, rope.maxPosition());
        rope.checkLength(32);
        IllegalArgumentException error =
                assertThrows(IllegalArgumentException.class, () -> rope.checkLength(33));
        assertTrue(
                error.getMessage()
                        .startsWith("A sequence of 33 tokens is beyond the original length 32"),
                error.getMessage());
    }

    @Test
    void theOtherKindsHaveNoLimit() throws Exception {
        TinyModel model = new TinyModel();
        assertEquals(Integer.MAX_VALUE, model.parsedConfig().rope().maxPosition());
        model.config.add(
                "rope_scaling", JsonParser.parseString("{'type': 'linear', 'factor': 2.0}"));
        RopeConfig rope = model.parsedConfig().rope();
        rope.checkLength(1 << 20);
        assertEquals("linear", rope.type());
        assertArrayEquals(new double[] {0.5, 0.005f}, rope.inverseFrequencies());
    }

    @Test
    void nullScalingAndBothEqualFormsAreAccepted() throws Exception {
        TinyModel model = new TinyModel();
        model.config.add("rope_scaling", JsonParser.parseString("null"));
        assertEquals("default", model.parsedConfig().rope().type());
        JsonElement yarn = JsonParser.parseString("{'rope_type': 'yarn', 'factor': 4.0}");
        model.config.add("rope_scaling", yarn);
        model.config.add("rope_parameters", yarn.deepCopy());
        assertEquals("yarn", model.parsedConfig().rope().type());
    }

    @Test
    void yarnDerivesAFactorWrittenAsNull() throws Exception {
        TinyModel model = new TinyModel();
        String scaling =
                "{'rope_type': 'yarn', 'original_max_position_embeddings': 8, 'factor': %s}";
        model.config.add("rope_scaling", JsonParser.parseString(scaling.formatted("null")));
        RopeConfig derived = model.parsedConfig().rope();
        model.config.add("rope_scaling", JsonParser.parseString(scaling.formatted("4.0")));
        RopeConfig explicit = model.parsedConfig().rope();
        assertArrayEquals(explicit.inverseFrequencies(), derived.inverseFrequencies());
        assertEquals(0.1 * Math.log(4) + 1, derived.attentionFactor(), 1e-15);
    }

    private static void assertGolden(JsonObject golden) throws Exception {
        LlamaConfig config = LlamaConfig.parse(golden.get("config").toString(), "golden");
        double[] frequencies = config.rope().inverseFrequencies();
        JsonArray expected = golden.getAsJsonArray("inv_freq");
        assertEquals(config.headDim() / 2, frequencies.length);
        assertEquals(expected.size(), frequencies.length);
        for (int i = 0; i < frequencies.length; i++) {
            float value = expected.get(i).getAsFloat();
            assertEquals(frequencies[i], (float) frequencies[i], "not rounded to float");
            // only the last bit may differ: libraries round powers differently
            assertEquals(value, frequencies[i], Math.ulp(value), "channel " + i);
        }
        double attentionFactor = golden.get("attention_factor").getAsDouble();
        assertEquals(attentionFactor, config.rope().attentionFactor(), 1e-12);
    }

    private static JsonArray goldens() throws IOException {
        try (InputStream in = RopeConfigTest.class.getResourceAsStream("rope-golden.json")) {
            assertNotNull(in);
            Reader reader = new InputStreamReader(in, StandardCharsets.UTF_8);
            return JsonParser.parseReader(reader).getAsJsonObject().getAsJsonArray("cases");
        }
    }
}
