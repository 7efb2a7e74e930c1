/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.MalformedModelException;
import ai.djl.kvquant.safetensors.SafetensorsFile;
import ai.djl.kvquant.safetensors.TensorEntry;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.stream.Stream;

/**
 * Tells models apart without reading all of their weights.
 *
 * <p>The fingerprint is a SHA-256 over config.json and, of each safetensors file, the name, the
 * size, the header, 64 KiB at either end of the data and 4 KiB at the start of each tensor (a
 * fine-tuned model may share its first and last tensors with the original). It is the same for a
 * copy of the directory, whatever the copy is called.
 */
public final class ModelFingerprint {

    private static final String CONFIG = "config.json";
    private static final String SINGLE = "model.safetensors";
    private static final String INDEX = "model.safetensors.index.json";
    private static final String SUFFIX = ".safetensors";

    /** Keys of config.json that change when a model is saved again, without a change of it. */
    private static final Set<String> IMMATERIAL =
            Set.of("_name_or_path", "transformers_version", "use_cache");

    private static final int END_BYTES = 1 << 16;
    private static final int TENSOR_BYTES = 1 << 12;

    private ModelFingerprint() {}

    /**
     * Computes the fingerprint of a model.
     *
     * @param modelDir a HuggingFace directory: config.json and safetensors files
     * @return 64 hexadecimal digits
     * @throws FileNotFoundException if the directory lacks either
     * @throws MalformedModelException if a file is damaged
     * @throws IOException if a file cannot be read
     */
    public static String of(Path modelDir) throws IOException, MalformedModelException {
        Path config = modelDir.resolve(CONFIG);
        if (!Files.isRegularFile(config)) {
            throw new FileNotFoundException(
                    "No " + CONFIG + " in " + modelDir + "; a HuggingFace model is needed.");
        }
        Sha256 digest = new Sha256().add(canonical(json(config)).toString());
        for (Path file : weights(modelDir)) {
            addWeights(digest, file);
        }
        return digest.hex();
    }

    private static List<Path> weights(Path modelDir) throws IOException, MalformedModelException {
        Path single = modelDir.resolve(SINGLE);
        if (Files.isRegularFile(single)) {
            return List.of(single);
        }
        Path index = modelDir.resolve(INDEX);
        if (Files.isRegularFile(index)) {
            return indexed(index);
        }
        try (Stream<Path> files = Files.list(modelDir)) {
            List<Path> found =
                    files.filter(file -> isWeights(file.getFileName().toString()))
                            .sorted(Comparator.comparing(file -> file.getFileName().toString()))
                            .toList();
            if (found.isEmpty()) {
                throw new FileNotFoundException(
                        "No *" + SUFFIX + " in " + modelDir + "; a HuggingFace model is needed.");
            }
            return found;
        }
    }

    private static boolean isWeights(String name) {
        return name.endsWith(SUFFIX) && !name.startsWith(CalibrationStore.PREFIX);
    }

    private static List<Path> indexed(Path index) throws IOException, MalformedModelException {
        TreeSet<String> names = new TreeSet<>();
        try {
            JsonObject map = json(index).getAsJsonObject("weight_map");
            map.asMap().values().forEach(name -> names.add(name.getAsString()));
        } catch (RuntimeException e) {
            throw new MalformedModelException(
                    index + " has no weight_map from tensors to files.", e);
        }
        return names.stream().map(index::resolveSibling).toList();
    }

    private static JsonObject json(Path file) throws IOException, MalformedModelException {
        try {
            return JsonParser.parseString(Files.readString(file)).getAsJsonObject();
        } catch (JsonParseException | IllegalStateException e) {
            throw new MalformedModelException(file + " is not a JSON object.", e);
        }
    }

    /** The same for the same settings: keys sorted, without those that are null or immaterial. */
    private static JsonElement canonical(JsonElement element) {
        if (element.isJsonArray()) {
            JsonArray array = new JsonArray();
            element.getAsJsonArray().forEach(item -> array.add(canonical(item)));
            return array;
        }
        if (!element.isJsonObject()) {
            return element;
        }
        JsonObject sorted = new JsonObject();
        Map<String, JsonElement> entries = new TreeMap<>(element.getAsJsonObject().asMap());
        entries.forEach(
                (key, value) -> {
                    if (!value.isJsonNull() && !IMMATERIAL.contains(key)) {
                        sorted.add(key, canonical(value));
                    }
                });
        return sorted;
    }

    private static void addWeights(Sha256 digest, Path file)
            throws IOException, MalformedModelException {
        SafetensorsFile weights = SafetensorsFile.open(file);
        long start = weights.dataStart();
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
            long size = channel.size();
            digest.add(file.getFileName().toString()).add(size).add(start);
            add(digest, channel, 0, start);
            add(digest, channel, start, Math.min(END_BYTES, size - start));
            long last = Math.max(start, size - END_BYTES);
            add(digest, channel, last, size - last);
            for (TensorEntry entry : weights.entries().values()) {
                add(digest, channel, entry.offset(), Math.min(TENSOR_BYTES, entry.bytes()));
            }
        }
    }

    private static void add(Sha256 digest, FileChannel channel, long from, long length)
            throws IOException {
        ByteBuffer part = ByteBuffer.allocate((int) Math.min(END_BYTES, length));
        for (long at = from; at < from + length; at += part.limit()) {
            part.clear().limit((int) Math.min(part.capacity(), from + length - at));
            while (part.hasRemaining()) {
                if (channel.read(part, at + part.position()) < 0) {
                    throw new IOException("The weights became shorter while they were read.");
                }
            }
            digest.add(part.flip());
        }
    }
}
