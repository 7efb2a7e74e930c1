/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import ai.djl.MalformedModelException;
import ai.djl.kvquant.safetensors.SafetensorsFile;
import ai.djl.kvquant.safetensors.TensorEntry;
import ai.djl.ndarray.types.DataType;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.EnumMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * The weights of a HuggingFace LLaMA directory, checked against its configuration and mapped into
 * memory on demand, read-only.
 *
 * <p>Exactly the tensors that the configuration asks for are there, each with its shape, in F32,
 * F16 or BF16; types may differ between tensors, {@link #dtypes()} tells. Nothing needs closing:
 * files are open only inside a call, and a mapping ends when its buffer is no longer reachable. The
 * files must not change meanwhile. Instances may be used from several threads.
 */
public final class Checkpoint {

    private final Map<String, TensorEntry> entries;

    private Checkpoint(Map<String, TensorEntry> entries) {
        this.entries = Collections.unmodifiableMap(entries);
    }

    /**
     * Opens the weights of a directory: {@code model.safetensors}, else the shards that {@code
     * model.safetensors.index.json} names, else the only safetensors file or complete set of
     * shards.
     *
     * @param modelDir the directory
     * @param config its configuration
     * @return the weights
     * @throws FileNotFoundException if the directory holds no safetensors files
     * @throws MalformedModelException if a file is broken, or a tensor is missing, surplus, of a
     *     wrong shape or of a type that is not supported; the message names file and tensor
     * @throws IOException if a file cannot be read
     */
    public static Checkpoint open(Path modelDir, LlamaConfig config)
            throws IOException, MalformedModelException {
        Map<String, TensorEntry> found = ModelFiles.tensors(modelDir);
        Map<String, long[]> expected = CheckpointLayout.of(config);
        requireAll(ModelFiles.describe(modelDir), expected, found);
        Map<String, TensorEntry> entries = new LinkedHashMap<>();
        for (Map.Entry<String, long[]> wanted : expected.entrySet()) {
            TensorEntry entry = found.get(wanted.getKey());
            check(entry, wanted.getValue());
            entries.put(entry.name(), entry);
        }
        for (TensorEntry entry : found.values()) {
            boolean known = expected.containsKey(entry.name());
            if (!known && !CheckpointLayout.isIgnored(entry.name())) {
                checkSurplus(entry, found.get(CheckpointLayout.EMBEDDING), config);
            }
        }
        return new Checkpoint(entries);
    }

    /**
     * Returns the names of all tensors, as in HuggingFace: the token embedding, the layers from
     * first to last, the final norm, and the output projection unless it is tied.
     *
     * @return an unmodifiable list in this order, which suits loading
     */
    public List<String> names() {
        return List.copyOf(entries.keySet());
    }

    /**
     * Returns all tensors in the order of {@link #names()}.
     *
     * @return an unmodifiable map by name
     */
    public Map<String, TensorEntry> entries() {
        return entries;
    }

    /**
     * Returns where a tensor lies.
     *
     * @param name the name of the tensor
     * @return its entry
     * @throws IllegalArgumentException if the checkpoint has no such tensor
     */
    public TensorEntry entry(String name) {
        TensorEntry entry = entries.get(name);
        if (entry == null) {
            throw new IllegalArgumentException("The checkpoint has no tensor " + name + ".");
        }
        return entry;
    }

    /**
     * Maps a whole tensor of less than 2 GiB.
     *
     * @param name the name of the tensor
     * @return a direct, read-only, little endian buffer from position 0 to the tensor's size
     * @throws IllegalArgumentException if the checkpoint has no such tensor, or if it is larger:
     *     use {@link #bytes(String, long, int)} then
     * @throws IOException if the file cannot be mapped
     */
    public ByteBuffer bytes(String name) throws IOException {
        TensorEntry entry = entry(name);
        if (entry.bytes() > Integer.MAX_VALUE) {
            throw new IllegalArgumentException(
                    "Tensor "
                            + name
                            + " has "
                            + entry.bytes()
                            + " bytes, more than one buffer holds; map it in parts.");
        }
        return SafetensorsFile.map(entry, 0, (int) entry.bytes());
    }

    /**
     * Maps a part of a tensor.
     *
     * @param name the name of the tensor
     * @param from the first byte, counted from the tensor's first
     * @param length the number of bytes
     * @return a direct, read-only, little endian buffer from position 0 to {@code length}
     * @throws IllegalArgumentException if the checkpoint has no such tensor or the part is outside
     *     of it
     * @throws IOException if the file cannot be mapped
     */
    public ByteBuffer bytes(String name, long from, int length) throws IOException {
        return SafetensorsFile.map(entry(name), from, length);
    }

    /**
     * Returns the types that occur and how many tensors have each.
     *
     * @return an unmodifiable map; more than one key means that the checkpoint is mixed
     */
    public Map<DataType, Integer> dtypes() {
        Map<DataType, Integer> counts = new EnumMap<>(DataType.class);
        for (TensorEntry entry : entries.values()) {
            counts.merge(entry.dtype(), 1, Integer::sum);
        }
        return Collections.unmodifiableMap(counts);
    }

    /**
     * Returns the size of all weights.
     *
     * @return bytes in the files, headers not counted
     */
    public long totalBytes() {
        return entries.values().stream().mapToLong(TensorEntry::bytes).sum();
    }

    private static void requireAll(
            Path source, Map<String, long[]> expected, Map<String, TensorEntry> found)
            throws MalformedModelException {
        List<String> missing = new ArrayList<>(expected.keySet());
        missing.removeAll(found.keySet());
        if (missing.isEmpty()) {
            return;
        }
        String first = missing.get(0);
        String hint = "";
        if (missing.equals(List.of(CheckpointLayout.OUTPUT))) {
            hint =
                    " If this model ties its embeddings, config.json needs tie_word_embeddings"
                            + " true.";
        }
        throw new MalformedModelException(
                source
                        + ": tensor "
                        + first
                        + " "
                        + Arrays.toString(expected.get(first))
                        + " is missing"
                        + (missing.size() > 1 ? ", and " + (missing.size() - 1) + " more" : "")
                        + "; config.json asks for "
                        + expected.size()
                        + " tensors, "
                        + found.size()
                        + " were found."
                        + hint);
    }

    private static void check(TensorEntry entry, long[] shape) throws MalformedModelException {
        switch (entry.dtype()) {
            case FLOAT32, FLOAT16, BFLOAT16 -> {}
            default ->
                    throw malformed(
                            entry,
                            "has the dtype "
                                    + entry.dtype()
                                    + ", which is not supported; weights must be F32, F16 or BF16");
        }
        if (!entry.hasShape(shape)) {
            throw malformed(
                    entry,
                    "has the shape "
                            + Arrays.toString(entry.shape())
                            + ", but config.json makes it "
                            + Arrays.toString(shape));
        }
    }

    private static void checkSurplus(TensorEntry entry, TensorEntry embedding, LlamaConfig config)
            throws IOException, MalformedModelException {
        if (!CheckpointLayout.OUTPUT.equals(entry.name())) {
            String hint =
                    "; if config.json and the weights are of different models, download both again";
            if (entry.name().endsWith(".bias")) {
                String key = entry.name().contains(".mlp.") ? "mlp_bias" : "attention_bias";
                hint = "; if it belongs to the model, config.json needs " + key + " true";
            }
            throw malformed(
                    entry,
                    Arrays.toString(entry.shape())
                            + " is no part of a "
                            + config.architecture()
                            + " as config.json describes it"
                            + hint);
        }
        check(entry, embedding.shape());
        if (entry.dtype() != embedding.dtype() || !SafetensorsFile.sameBytes(entry, embedding)) {
            throw malformed(
                    entry,
                    "differs from "
                            + embedding.name()
                            + ", although config.json ties them (tie_word_embeddings true)");
        }
    }

    private static MalformedModelException malformed(TensorEntry entry, String problem) {
        return new MalformedModelException(
                entry.file() + ": tensor " + entry.name() + " " + problem + ".");
    }
}
