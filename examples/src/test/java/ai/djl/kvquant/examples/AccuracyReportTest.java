/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.io.InputStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.imageio.ImageIO;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The report that is composed from saved parts, against one that was read by a human. */
class AccuracyReportTest {

    @TempDir Path directory;

    private static String resource(String name) throws IOException {
        try (InputStream in = AccuracyReportTest.class.getResourceAsStream("accuracy/" + name)) {
            return new String(in.readAllBytes(), StandardCharsets.UTF_8);
        }
    }

    private void save(String... parts) throws IOException {
        for (String part : parts) {
            Files.writeString(directory.resolve(part + ".json"), resource(part + ".json"));
        }
    }

    private String report(int exitCode, String... more) {
        StringWriter out = new StringWriter();
        StringWriter err = new StringWriter();
        String[] args = {"eval", "--measure", "none", "--output", directory.toString()};
        String[] all = Arrays.copyOf(args, args.length + more.length);
        System.arraycopy(more, 0, all, args.length, more.length);
        int code = Kvq.run(all, new PrintWriter(out), new PrintWriter(err));
        assertEquals(exitCode, code, err.toString());
        return code == 0 ? out.toString() : err.toString().strip();
    }

    @Test
    void everyPartHasItsTablesAndPlots() throws Exception {
        save("perplexity", "layers", "needle");
        String out = report(0, "--reuse");
        assertTrue(out.contains("+1.750"), out);
        assertTrue(out.contains("Report: " + directory.resolve("accuracy.md")), out);
        String markdown = Files.readString(directory.resolve("accuracy.md"));
        assertEquals(resource("accuracy.md"), markdown);
        Matcher images = Pattern.compile("!\\[[^]]+]\\(([^)]+)\\)").matcher(markdown);
        int count = 0;
        for (; images.find(); ++count) {
            assertFalse(images.group(1).contains("/"), images.group(1));
            BufferedImage image = ImageIO.read(directory.resolve(images.group(1)).toFile());
            assertNotNull(image, images.group(1));
            assertTrue(image.getWidth() >= 600 && image.getHeight() >= 200, images.group(1));
            assertTrue(hasInk(image), images.group(1));
        }
        assertEquals(6, count);
    }

    private static boolean hasInk(BufferedImage image) {
        int first = image.getRGB(0, 0);
        for (int x = 0; x < image.getWidth(); ++x) {
            if (image.getRGB(x, image.getHeight() / 2) != first) {
                return true;
            }
        }
        return false;
    }

    @Test
    void aPartAloneIsAReport() throws Exception {
        save("needle");
        report(0, "--reuse", "--note", "Nothing else was measured.");
        String markdown = Files.readString(directory.resolve("accuracy.md"));
        assertTrue(markdown.contains("Nothing else was measured. This file"), markdown);
        assertEquals(
                List.of("# Accuracy", "## Needle"),
                markdown.lines().filter(line -> line.startsWith("#")).toList());
    }

    @Test
    void jsonHasALineForEachRow() throws Exception {
        save("perplexity", "layers");
        List<JsonObject> rows =
                report(0, "--reuse", "--json")
                        .lines()
                        .map(line -> JsonParser.parseString(line).getAsJsonObject())
                        .toList();
        assertEquals(9, rows.size());
        assertEquals("perplexity", rows.get(1).get("part").getAsString());
        assertEquals(0.0123456, rows.get(1).get("mean_kl").getAsDouble());
        assertEquals("layers", rows.get(8).get("part").getAsString());
        assertTrue(rows.get(8).getAsJsonArray("keys").get(0).isJsonNull());
    }

    @Test
    void formerResultsAreNotMixedInUnasked() throws Exception {
        save("perplexity");
        assertEquals(
                "kvq: --output "
                        + directory
                        + " holds results already; add --reuse to complete them, or choose another"
                        + " directory.",
                report(1));
        Path needle = directory.resolve("needle.json");
        Files.writeString(needle, resource("needle.json").replace("0123456", "6543210"));
        assertTrue(report(1, "--reuse").contains("of several models or weight types"));
        Files.writeString(needle, "{\"rows\": 1");
        assertTrue(report(1, "--reuse").contains("is not what kvq eval writes"));
        Files.writeString(needle, "{}");
        assertTrue(report(1, "--reuse").contains("is not what kvq eval writes"));
    }

    @Test
    void aLineJoinsCachesThatDifferInBitsAlone() {
        assertEquals("int", new AccuracyPlots.Loss("int2", 3, 1).family());
        assertEquals("latent", new AccuracyPlots.Loss("latent1.5", 3, 1).family());
        assertEquals("svdq/fp16", new AccuracyPlots.Loss("svdq2.25/fp16", 3, 1).family());
        assertEquals("auto/int", new AccuracyPlots.Loss("auto/int4", 3, 1).family());
        assertEquals(
                "rotatekv, recent_tokens=128, sink_tokens=4",
                new AccuracyPlots.Loss("rotatekv2:kv_recent_tokens=128:kv_sink_tokens=4", 3, 1)
                        .family());
    }
}
