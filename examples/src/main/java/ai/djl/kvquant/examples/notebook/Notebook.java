/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples.notebook;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import com.google.gson.stream.JsonWriter;
import java.io.IOException;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** A Jupyter notebook of format 4: an .ipynb file, written as Jupyter writes it. */
final class Notebook {

    private static final Gson GSON =
            new GsonBuilder().disableHtmlEscaping().serializeNulls().create();

    private final Path file;
    private final JsonObject json;

    private Notebook(Path file, JsonObject json) {
        this.file = file;
        this.json = json;
    }

    static Notebook read(Path file) throws IOException {
        try {
            JsonObject json = JsonParser.parseString(Files.readString(file)).getAsJsonObject();
            if (json.get("nbformat").getAsInt() == 4 && json.has("cells")) {
                return new Notebook(file, json);
            }
        } catch (JsonParseException | IllegalStateException | NullPointerException e) {
            throw new IOException(file + " is not a notebook (" + e.getMessage() + ").", e);
        }
        throw new IOException(file + " is not a notebook of format 4; save it as one.");
    }

    List<Cell> codeCells() {
        List<Cell> cells = new ArrayList<>();
        for (JsonElement each : json.getAsJsonArray("cells")) {
            JsonObject cell = each.getAsJsonObject();
            if ("code".equals(cell.get("cell_type").getAsString())) {
                cells.add(new Cell(cell));
            }
        }
        return cells;
    }

    void write() throws IOException {
        StringWriter text = new StringWriter();
        JsonWriter writer = new JsonWriter(text);
        writer.setIndent(" ");
        writer.setHtmlSafe(false);
        GSON.toJson(json, writer);
        Files.writeString(file, text + "\n");
    }

    /**
     * A cell of code.
     *
     * @param json the cell
     */
    record Cell(JsonObject json) {

        String source() {
            JsonElement source = json.get("source");
            if (source.isJsonPrimitive()) {
                return source.getAsString();
            }
            StringBuilder text = new StringBuilder();
            source.getAsJsonArray().forEach(line -> text.append(line.getAsString()));
            return text.toString();
        }

        void setOutputs(int count, JsonArray outputs) {
            json.addProperty("execution_count", count);
            json.add("outputs", outputs);
        }
    }
}
