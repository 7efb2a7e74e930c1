/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.kvquant.examples.notebook.NotebookRunner;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Every notebook runs, on a small checkpoint; and the runner says what failed. */
class NotebooksTest {

    private static final Path ROOT = DefaultModel.repositoryRoot();
    private static final Path NOTEBOOKS = ROOT.resolve("examples/notebooks");

    @TempDir private Path directory;

    @BeforeEach
    void model() throws Exception {
        SmallModel.in(directory).tokenizer();
        System.setProperty("kvq.model", directory.toString());
        System.setProperty("kvq.docs", ROOT.resolve("docs").toString());
    }

    @AfterEach
    void clear() {
        System.clearProperty("kvq.model");
        System.clearProperty("kvq.docs");
    }

    private static List<JsonObject> codeCells(Path file) throws IOException {
        List<JsonObject> cells = new ArrayList<>();
        JsonObject notebook = JsonParser.parseString(Files.readString(file)).getAsJsonObject();
        for (JsonElement cell : notebook.getAsJsonArray("cells")) {
            if ("code".equals(cell.getAsJsonObject().get("cell_type").getAsString())) {
                cells.add(cell.getAsJsonObject());
            }
        }
        return cells;
    }

    private static List<JsonObject> outputs(Path file, String type) throws IOException {
        List<JsonObject> outputs = new ArrayList<>();
        for (JsonObject cell : codeCells(file)) {
            for (JsonElement output : cell.getAsJsonArray("outputs")) {
                if (type.equals(output.getAsJsonObject().get("output_type").getAsString())) {
                    outputs.add(output.getAsJsonObject());
                }
            }
        }
        return outputs;
    }

    private static void run(Path file, boolean keepOutputs) throws Exception {
        String classPath = System.getProperty("java.class.path");
        String all = System.getProperty("surefire.test.class.path", classPath);
        NotebookRunner.run(file, all, keepOutputs);
    }

    @ParameterizedTest
    @CsvSource({"quickstart,0", "memory-and-speed,2", "accuracy,2", "cache-method,1"})
    void runs(String name, int plots) throws Exception {
        Path stored = NOTEBOOKS.resolve(name + ".ipynb");
        Path copy = Files.copy(stored, directory.resolve("copy.ipynb"));
        run(copy, true);
        List<JsonObject> images = outputs(copy, "display_data");
        assertEquals(plots, images.size());
        for (JsonObject image : images) {
            String png = image.getAsJsonObject("data").get("image/png").getAsString();
            assertTrue(png.startsWith("iVBORw0KGgo"), png.substring(0, 20));
        }
        assertFalse(outputs(copy, "stream").isEmpty());
        // What is in the repository was run, too, with the same number of plots and no failure.
        assertEquals(plots, outputs(stored, "display_data").size());
        assertEquals(List.of(), outputs(stored, "error"));
        for (JsonObject cell : codeCells(stored)) {
            assertFalse(cell.get("execution_count").isJsonNull(), cell.toString());
        }
    }

    private Path notebook(String source) throws IOException {
        JsonObject cell = new JsonObject();
        cell.addProperty("cell_type", "code");
        cell.addProperty("source", source);
        String text = "{\"nbformat\": 4, \"cells\": [%s]}".formatted(cell);
        return Files.writeString(directory.resolve("test.ipynb"), text);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "int x = \"text\";|incompatible types",
                "throw new IllegalStateException(\"on purpose\");|on purpose",
                "int[] none = {}; none[3] = 1;|Index 3",
                "%load something|'%load something' is not known here",
                "int y = (1 +|Cell 1",
            })
    void aCellThatFailsIsNamed(String source, String message) throws Exception {
        Path file = notebook("System.out.println(1);\n" + source);
        IOException error = assertThrows(IOException.class, () -> run(file, true));
        assertTrue(error.getMessage().contains(message), error.getMessage());
    }

    @Test
    void anErrorIsKeptBehindWhatWasPrinted() throws Exception {
        Path file = notebook("System.out.println(\"before\");\nthrow new RuntimeException(\"x\");");
        assertThrows(IOException.class, () -> run(file, true));
        assertEquals(1, outputs(file, "stream").size());
        assertEquals(1, outputs(file, "error").size());
    }

    @Test
    void theLastExpressionIsShown() throws Exception {
        Path file = notebook("int half(int n) { return n / 2; }\nint a = 84;\nhalf(a)");
        run(file, true);
        JsonObject result = outputs(file, "execute_result").get(0);
        assertEquals("42", result.getAsJsonObject("data").get("text/plain").getAsString());
    }

    @Test
    void aCheckLeavesTheFile() throws Exception {
        Path file = notebook("1 + 1");
        String before = Files.readString(file);
        run(file, false);
        assertEquals(before, Files.readString(file));
    }

    @Test
    void whatIsNoNotebookIsRefused() throws Exception {
        Path file = Files.writeString(directory.resolve("text.ipynb"), "no notebook");
        IOException error = assertThrows(IOException.class, () -> run(file, true));
        assertTrue(error.getMessage().contains("is not a notebook"), error.getMessage());
    }
}
