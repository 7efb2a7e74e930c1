/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples.notebook;

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import java.awt.image.BufferedImage;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.Base64;
import javax.imageio.ImageIO;

/**
 * What the cell that runs now shows. Public for the cells, which the runner compiles apart: they
 * call {@code display(object)}, as with the Java kernels of Jupyter.
 */
public final class Display {

    private static JsonArray outputs = new JsonArray();

    private Display() {}

    /**
     * Shows an object below the cell, an image as PNG and all else as text.
     *
     * @param object the object
     */
    public static void show(Object object) {
        JsonObject output = new JsonObject();
        output.addProperty("output_type", "display_data");
        output.add("data", data(object));
        output.add("metadata", new JsonObject());
        outputs.add(output);
    }

    /**
     * Shows the value of a cell's last expression.
     *
     * @param object the value
     * @param cell the number of the cell
     */
    public static void result(Object object, int cell) {
        if (object == null) {
            return;
        }
        JsonObject output = new JsonObject();
        output.addProperty("output_type", "execute_result");
        output.addProperty("execution_count", cell);
        output.add("data", data(object));
        output.add("metadata", new JsonObject());
        outputs.add(output);
    }

    private static JsonObject data(Object object) {
        JsonObject data = new JsonObject();
        if (object instanceof BufferedImage image) {
            data.addProperty("image/png", Base64.getEncoder().encodeToString(png(image)));
            data.addProperty("text/plain", image.getWidth() + " x " + image.getHeight());
        } else {
            data.addProperty("text/plain", String.valueOf(object));
        }
        return data;
    }

    private static byte[] png(BufferedImage image) {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        try {
            ImageIO.write(image, "png", bytes);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
        return bytes.toByteArray();
    }

    static void begin() {
        outputs = new JsonArray();
    }

    /** Text that was printed since the last output. */
    static void stream(String text) {
        if (!text.isEmpty()) {
            JsonObject output = new JsonObject();
            output.addProperty("output_type", "stream");
            output.addProperty("name", "stdout");
            output.add("text", lines(text));
            outputs.add(output);
        }
    }

    static void error(String name, String message) {
        JsonObject output = new JsonObject();
        output.addProperty("output_type", "error");
        output.addProperty("ename", name);
        output.addProperty("evalue", message);
        output.add("traceback", lines(message));
        outputs.add(output);
    }

    /** Jupyter keeps a text as a list of lines, each with its end. */
    private static JsonArray lines(String text) {
        JsonArray lines = new JsonArray();
        for (String line : text.split("(?<=\n)")) {
            lines.add(line);
        }
        return lines;
    }

    static JsonArray end() {
        return outputs;
    }
}
