/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertAll;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import com.google.gson.Gson;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** The default model's tokenizer, as DJL runs it, gives the ids that Python's tokenizers gives. */
class TokenizerGoldenTest {

    private static HuggingFaceTokenizer tokenizer;

    @BeforeAll
    static void load() throws IOException {
        Map<String, String> options =
                Map.of("addSpecialTokens", "false", "truncation", "false", "padding", "false");
        tokenizer = HuggingFaceTokenizer.newInstance(DefaultModel.directory(), options);
    }

    @AfterAll
    static void close() {
        if (tokenizer != null) {
            tokenizer.close();
        }
    }

    static List<Golden> goldens() throws IOException {
        try (Reader reader =
                new InputStreamReader(
                        TokenizerGoldenTest.class.getResourceAsStream("/golden/tokenizer.json"),
                        StandardCharsets.UTF_8)) {
            return List.of(new Gson().fromJson(reader, Golden[].class));
        }
    }

    @ParameterizedTest
    @MethodSource("goldens")
    void idsEqualThoseOfPython(Golden golden) {
        assertArrayEquals(golden.ids(), tokenizer.encode(golden.text()).getIds());
    }

    @ParameterizedTest
    @MethodSource("goldens")
    void idsDecodeToTheText(Golden golden) {
        assertEquals(golden.text(), tokenizer.decode(golden.ids(), false));
    }

    @Test
    void wikiTextTestSplit() throws IOException {
        String text = Files.readString(wikiText("wiki.test.raw"));
        assertIds(
                text, 301_948, "0ad310033bda4976176f9a10c6c1d32cc39d0babbfdba8e53bda759f4dc00c44");
    }

    @Test
    void wikiTextValidationSplitWithoutUnknownsAndBlankLines() throws IOException {
        String text =
                Files.readString(wikiText("wiki.valid.tokens"))
                        .replace(" <unk>", "")
                        .lines()
                        .filter(line -> !line.isBlank())
                        .collect(Collectors.joining("\n", "", "\n"));
        assertIds(
                text, 237_415, "0603281b7ed4a64d863baada73d91bce5c130384c0ad95dee12d7405626e4401");
    }

    private static void assertIds(String text, int count, String sha256) {
        long[] ids = tokenizer.encode(text).getIds();
        assertAll(
                () -> assertEquals(count, ids.length),
                () -> assertEquals(sha256, sha256OfShorts(ids)));
    }

    private static String sha256OfShorts(long[] ids) throws NoSuchAlgorithmException {
        ByteBuffer bytes = ByteBuffer.allocate(2 * ids.length).order(ByteOrder.LITTLE_ENDIAN);
        for (long id : ids) {
            bytes.putShort((short) id);
        }
        return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes.array()));
    }

    /** Skips the test (the build prints and counts skips) where WikiText-2 is not at hand. */
    private static Path wikiText(String name) {
        String directory = System.getProperty("kvquant.wikitext", "");
        boolean given = !directory.isEmpty() && !directory.startsWith("${");
        if (!given) {
            Assumptions.abort("set KVQUANT_WIKITEXT to the directory that holds " + name);
        }
        return Path.of(directory, name);
    }

    /**
     * A text and its tokens.
     *
     * @param name what the text exercises
     * @param text the text
     * @param ids its tokens, without special tokens around them
     */
    record Golden(String name, String text, long[] ids) {
        @Override
        public String toString() {
            return name;
        }
    }
}
