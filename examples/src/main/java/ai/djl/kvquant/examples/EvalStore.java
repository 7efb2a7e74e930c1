/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import com.google.gson.FieldNamingPolicy;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.reflect.TypeToken;
import java.io.IOException;
import java.lang.reflect.Type;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.Arrays;
import java.util.List;

/** The directory that an evaluation is written to: a JSON file for each part. */
final class EvalStore {

    private static final Gson GSON =
            new GsonBuilder()
                    .setFieldNamingPolicy(FieldNamingPolicy.LOWER_CASE_WITH_UNDERSCORES)
                    .disableHtmlEscaping()
                    .setPrettyPrinting()
                    .create();
    private static final List<String> PARTS =
            Arrays.asList(EvalPart.PERPLEXITY, EvalPart.LAYERS, EvalPart.NEEDLE);

    private final Path directory;

    EvalStore(Path directory) {
        this.directory = directory;
    }

    Path directory() {
        return directory;
    }

    /** A row as an object of one line, which tells its part. */
    static String line(String part, Object row) {
        JsonObject object = new JsonObject();
        object.addProperty("part", part);
        GSON.toJsonTree(row).getAsJsonObject().asMap().forEach(object::add);
        return object.toString();
    }

    private Path file(String part) {
        return directory.resolve(part + ".json");
    }

    /** Whether a part was saved before. */
    boolean hasResults() {
        return PARTS.stream().anyMatch(part -> Files.exists(file(part)));
    }

    /** A part that was saved before; null if there is none. */
    <R> EvalPart<R> read(String part, Class<R> row) throws IOException {
        Path file = file(part);
        if (!Files.exists(file)) {
            return null;
        }
        Type type = TypeToken.getParameterized(EvalPart.class, row).getType();
        try {
            EvalPart<R> read = GSON.fromJson(Files.readString(file), type);
            if (read == null || read.rows() == null || read.settings() == null) {
                throw new JsonParseException("it lacks rows or settings");
            }
            return read;
        } catch (JsonParseException e) {
            throw new IOException(
                    file + " is not what kvq eval writes; delete it or choose another --output.",
                    e);
        }
    }

    /** Saves a part; an interrupted run leaves the former one. */
    void write(String part, EvalPart<?> value) throws IOException {
        write(part + ".json", GSON.toJson(value) + "\n");
    }

    void write(String name, String text) throws IOException {
        if (!Files.isDirectory(directory)) {
            Files.createDirectories(directory);
        }
        Path draft = Files.writeString(directory.resolve(name + ".tmp"), text);
        Files.move(draft, directory.resolve(name), StandardCopyOption.REPLACE_EXISTING);
    }
}
