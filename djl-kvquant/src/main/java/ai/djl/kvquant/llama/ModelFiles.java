/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.MalformedModelException;
import ai.djl.kvquant.safetensors.SafetensorsFile;
import ai.djl.kvquant.safetensors.TensorEntry;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * Finds the weights of a HuggingFace directory: {@code model.safetensors}, else the shards that
 * {@code model.safetensors.index.json} names, else the only file or complete set of shards there.
 */
final class ModelFiles {

    private static final String SINGLE = "model.safetensors";
    private static final String INDEX = "model.safetensors.index.json";

    /** Calibration files of this library lie beside the weights. */
    private static final String CALIBRATION = "kvquant-";

    private static final Pattern SHARD = Pattern.compile("(.*)-(\\d{5})-of-(\\d{5})\\.safetensors");
    private static final Pattern OTHER_FORMAT =
            Pattern.compile(".*\\.(bin|bin\\.index\\.json|pt|pth|ckpt|gguf|msgpack|h5)");

    private ModelFiles() {}

    static void requireDirectory(Path modelDir) throws FileNotFoundException {
        if (!Files.isDirectory(modelDir)) {
            throw new FileNotFoundException("No model directory " + modelDir + ".");
        }
    }

    /**
     * Reads the headers of all weights.
     *
     * @param modelDir the directory
     * @return the tensors by name
     * @throws FileNotFoundException if there are no weights
     * @throws MalformedModelException if a header is broken or files contradict each other
     * @throws IOException if a file cannot be read
     */
    static Map<String, TensorEntry> tensors(Path modelDir)
            throws IOException, MalformedModelException {
        requireDirectory(modelDir);
        Path single = modelDir.resolve(SINGLE);
        if (Files.isRegularFile(single)) {
            return SafetensorsFile.open(single).entries();
        }
        Path index = modelDir.resolve(INDEX);
        if (Files.isRegularFile(index)) {
            return indexed(index);
        }
        Map<String, TensorEntry> tensors = new LinkedHashMap<>();
        for (Path file : withoutIndex(modelDir)) {
            addAll(tensors, file);
        }
        return tensors;
    }

    /** The file that an error about the whole checkpoint should name. */
    static Path describe(Path modelDir) {
        for (String name : new String[] {SINGLE, INDEX}) {
            if (Files.isRegularFile(modelDir.resolve(name))) {
                return modelDir.resolve(name);
            }
        }
        return modelDir;
    }

    private static Map<String, TensorEntry> indexed(Path index)
            throws IOException, MalformedModelException {
        JsonSection weightMap =
                JsonSection.parse(Files.readString(index), index.toString()).object("weight_map");
        Map<String, String> shardOfTensor = new LinkedHashMap<>();
        Map<String, String> firstTensorOfShard = new TreeMap<>();
        for (String tensor : weightMap.keys()) {
            String shard = weightMap.string(tensor);
            shardOfTensor.put(tensor, shard);
            firstTensorOfShard.putIfAbsent(shard, tensor);
        }
        Map<String, TensorEntry> tensors = new LinkedHashMap<>();
        for (Map.Entry<String, String> shard : firstTensorOfShard.entrySet()) {
            addAll(tensors, shardFile(index, shard.getKey(), shard.getValue()));
        }
        for (Map.Entry<String, String> mapped : shardOfTensor.entrySet()) {
            TensorEntry entry = tensors.get(mapped.getKey());
            if (entry == null || !entry.file().endsWith(mapped.getValue())) {
                throw new MalformedModelException(
                        index
                                + " places tensor "
                                + mapped.getKey()
                                + " in "
                                + mapped.getValue()
                                + ", which does not hold it"
                                + (entry == null ? "." : "; " + entry.file() + " does."));
            }
        }
        for (TensorEntry entry : tensors.values()) {
            if (!shardOfTensor.containsKey(entry.name())) {
                throw new MalformedModelException(
                        entry.file()
                                + " holds tensor "
                                + entry.name()
                                + ", which "
                                + index.getFileName()
                                + " does not name.");
            }
        }
        return tensors;
    }

    private static Path shardFile(Path index, String shard, String tensor)
            throws MalformedModelException {
        // an index must not reach out of its directory
        if (shard.isBlank() || shard.contains("/") || shard.contains("\\") || shard.equals("..")) {
            throw new MalformedModelException(
                    index
                            + " places tensor "
                            + tensor
                            + " in '"
                            + shard
                            + "', which is not the name of a file beside it.");
        }
        Path file = index.resolveSibling(shard);
        if (!Files.isRegularFile(file)) {
            throw new MalformedModelException(
                    index
                            + " places tensor "
                            + tensor
                            + " in "
                            + shard
                            + ", but there is no such file; download it.");
        }
        return file;
    }

    private static void addAll(Map<String, TensorEntry> tensors, Path file)
            throws IOException, MalformedModelException {
        for (TensorEntry entry : SafetensorsFile.open(file).entries().values()) {
            TensorEntry other = tensors.putIfAbsent(entry.name(), entry);
            if (other != null) {
                throw new MalformedModelException(
                        "Both "
                                + other.file()
                                + " and "
                                + file.getFileName()
                                + " hold tensor "
                                + entry.name()
                                + ".");
            }
        }
    }

    private static List<Path> withoutIndex(Path modelDir)
            throws IOException, MalformedModelException {
        List<Path> weights = new ArrayList<>();
        List<String> others = new ArrayList<>();
        try (Stream<Path> files = Files.list(modelDir).sorted()) {
            for (Path file : (Iterable<Path>) files::iterator) {
                String name = file.getFileName().toString();
                if (name.endsWith(".safetensors") && !name.startsWith(CALIBRATION)) {
                    weights.add(file);
                } else if (OTHER_FORMAT.matcher(name).matches()) {
                    others.add(name);
                }
            }
        }
        if (weights.isEmpty()) {
            throw new FileNotFoundException(
                    "No *.safetensors in "
                            + modelDir
                            + (others.isEmpty()
                                    ? "; a HuggingFace model directory is needed."
                                    : ", only "
                                            + others
                                            + "; convert them to safetensors, in Python with"
                                            + " AutoModelForCausalLM.from_pretrained(dir)"
                                            + ".save_pretrained(dir)."));
        }
        if (weights.size() > 1) {
            requireShards(modelDir, weights);
        }
        return weights;
    }

    private static void requireShards(Path modelDir, List<Path> weights)
            throws MalformedModelException {
        String set = null;
        for (int i = 0; i < weights.size(); i++) {
            Matcher matcher = SHARD.matcher(weights.get(i).getFileName().toString());
            boolean shard = matcher.matches() && Integer.parseInt(matcher.group(2)) == i + 1;
            String thisSet = shard ? matcher.group(1) + "-of-" + matcher.group(3) : null;
            if (thisSet == null
                    || Integer.parseInt(matcher.group(3)) != weights.size()
                    || i > 0 && !thisSet.equals(set)) {
                throw new MalformedModelException(
                        modelDir
                                + " holds "
                                + weights.size()
                                + " safetensors files that are no complete set of shards, and no "
                                + INDEX
                                + " says which belong to the model; "
                                + weights.get(i).getFileName()
                                + " does not fit.");
            }
            set = thisSet;
        }
    }
}
