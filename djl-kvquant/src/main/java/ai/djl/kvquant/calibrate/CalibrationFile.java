/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.MalformedModelException;
import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.safetensors.SafetensorsFile;
import ai.djl.kvquant.safetensors.SafetensorsWriter;
import ai.djl.kvquant.safetensors.TensorEntry;
import ai.djl.ndarray.types.DataType;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Calibrations as safetensors files: tensors {@code layers.<i>.<name>} of type F32, all finite, and
 * as metadata what they belong to. A hash over all of it finds every damage.
 */
public final class CalibrationFile {

    /** Metadata: the fingerprint of the model, see {@link ModelFingerprint}. */
    public static final String MODEL = "model";

    /** Metadata: SHA-256 of the text, see {@link CalibrationText#sha256}. */
    public static final String TEXT_SHA256 = "text_sha256";

    /** Metadata: the number of tokens of the text that were used. */
    public static final String TOKENS = "tokens";

    /** Metadata: the settings of the calibration, in a form of the calibration's own. */
    public static final String SETTINGS = "settings";

    private static final String FORMAT = "format";
    private static final String FORMAT_NAME = "kvquant-calibration";
    private static final String VERSION = "version";
    private static final String THIS_VERSION = "1";
    private static final String CONTENT_SHA256 = "content_sha256";
    private static final List<String> REQUIRED =
            List.of(Calibration.DTYPE, MODEL, TEXT_SHA256, TOKENS, SETTINGS);
    private static final Pattern TENSOR =
            Pattern.compile("layers\\.(0|[1-9]\\d{0,5})\\.([A-Za-z0-9_][A-Za-z0-9_.-]*)");
    private static final int SHORT_FINGERPRINT = 12;

    private CalibrationFile() {}

    /**
     * Writes a calibration. A reader sees the old file or the whole new one.
     *
     * @param file the file, which may exist; its directory must
     * @param calibration the calibration, with the metadata {@link Calibration#DTYPE}, {@link
     *     #MODEL}, {@link #TEXT_SHA256}, {@link #TOKENS} and {@link #SETTINGS}
     * @throws IllegalArgumentException if metadata are missing or an array holds NaN or Infinity
     * @throws IOException if the file cannot be written
     */
    public static void write(Path file, Calibration calibration) throws IOException {
        Map<String, String> metadata = new TreeMap<>(calibration.metadata());
        for (String key : REQUIRED) {
            if (!metadata.containsKey(key)) {
                throw new IllegalArgumentException(
                        "A calibration file needs the metadata "
                                + String.join(", ", REQUIRED)
                                + "; "
                                + key
                                + " is missing.");
            }
        }
        String problem = notFinite(calibration);
        if (problem != null) {
            throw new IllegalArgumentException(
                    "The calibration can not be written to " + file + ": " + problem + ".");
        }
        metadata.put(FORMAT, FORMAT_NAME);
        metadata.put(VERSION, THIS_VERSION);
        metadata.put(CONTENT_SHA256, hash(calibration));
        SafetensorsWriter writer = new SafetensorsWriter(metadata);
        for (Calibration.Array array : calibration.arrays()) {
            writer.put(tensor(array), array.values(), array.shape());
        }
        writer.write(file);
    }

    /**
     * Reads a calibration.
     *
     * @param file the file
     * @param preset the value of kv_cache_dtype that it must be of
     * @param fingerprint the fingerprint of the model that it must be of
     * @return the calibration; its metadata are those that it was written with
     * @throws IllegalArgumentException if the file is something else: no calibration, or one of
     *     another version, preset or model
     * @throws FileNotFoundException if there is no such file
     * @throws IOException if the file is damaged or cannot be read
     */
    public static Calibration read(Path file, String preset, String fingerprint)
            throws IOException {
        SafetensorsFile opened = open(file, preset);
        requireOwn(file, preset, fingerprint, opened.metadata());
        Map<String, String> metadata = new TreeMap<>(opened.metadata());
        List.of(FORMAT, VERSION, CONTENT_SHA256).forEach(metadata::remove);
        Calibration.Builder builder = new Calibration.Builder(metadata);
        for (TensorEntry entry : opened.entries().values()) {
            Matcher name = TENSOR.matcher(entry.name());
            if (!name.matches() || entry.dtype() != DataType.FLOAT32) {
                throw damaged(file, preset, "tensor " + entry + " is none of a calibration");
            }
            int layer = Integer.parseInt(name.group(1));
            float[] values = SafetensorsFile.floats(entry);
            builder.put(layer, name.group(2), values, entry.shape());
        }
        Calibration calibration = builder.build();
        String problem = notFinite(calibration);
        if (problem != null) {
            throw damaged(file, preset, problem);
        }
        if (!hash(calibration).equals(opened.metadata().get(CONTENT_SHA256))) {
            throw damaged(file, preset, "its contents do not have the hash that it states");
        }
        return calibration;
    }

    /**
     * Returns what a user can do to get a calibration file.
     *
     * @param preset the name of a calibration, as CacheOptions gives it
     * @return a sentence for the end of an error
     */
    static String remedy(String preset) {
        String cache =
                preset.replaceFirst("-kvquant", "/kvquant")
                        .replaceFirst("-(layer|band\\d+)$", ":kv_basis=$1")
                        .replaceFirst("-dense$", ":kv_outliers=0")
                        .replaceFirst("-outliers(.+)$", ":kv_outliers=$1");
        return "Run kvq calibrate --model DIR --text FILE --kv-cache-dtype " + cache + ".";
    }

    private static SafetensorsFile open(Path file, String preset) throws IOException {
        if (!Files.isRegularFile(file)) {
            throw new FileNotFoundException("No calibration file " + file + ". " + remedy(preset));
        }
        try {
            return SafetensorsFile.open(file);
        } catch (MalformedModelException e) {
            throw new IOException(e.getMessage() + " To write it anew: " + remedy(preset), e);
        }
    }

    private static void requireOwn(
            Path file, String preset, String fingerprint, Map<String, String> metadata) {
        String format = metadata.get(FORMAT);
        if (!FORMAT_NAME.equals(format)) {
            throw new IllegalArgumentException(
                    file
                            + " is not a calibration file: its metadata has the format "
                            + format
                            + ", not "
                            + FORMAT_NAME
                            + ". "
                            + remedy(preset));
        }
        require(file, preset, "format version", metadata.get(VERSION), THIS_VERSION);
        require(file, preset, "kv_cache_dtype", metadata.get(Calibration.DTYPE), preset);
        String model = metadata.get(MODEL);
        if (!fingerprint.equals(model)) {
            throw new IllegalArgumentException(
                    file
                            + " was calibrated for another model: its fingerprint is "
                            + shortened(model)
                            + ", this model has "
                            + shortened(fingerprint)
                            + ". "
                            + remedy(preset));
        }
    }

    private static void require(
            Path file, String preset, String what, String found, String allowed) {
        if (!allowed.equals(found)) {
            throw new IllegalArgumentException(
                    file
                            + " is a calibration of "
                            + what
                            + " "
                            + found
                            + "; allowed here: "
                            + allowed
                            + ". "
                            + remedy(preset));
        }
    }

    private static String shortened(String fingerprint) {
        return fingerprint == null || fingerprint.length() <= SHORT_FINGERPRINT
                ? fingerprint
                : fingerprint.substring(0, SHORT_FINGERPRINT);
    }

    private static IOException damaged(Path file, String preset, String problem) {
        return new IOException(file + " is damaged: " + problem + ". " + remedy(preset));
    }

    /** Where the first value is that is none; null if there is no such value. */
    private static String notFinite(Calibration calibration) {
        for (Calibration.Array array : calibration.arrays()) {
            FloatBuffer values = array.values();
            for (int i = 0; i < values.limit(); i++) {
                float value = values.get(i);
                if (!Float.isFinite(value)) {
                    String where = "tensor " + tensor(array) + " holds " + value + " at index " + i;
                    return where + ", but all values must be finite";
                }
            }
        }
        return null;
    }

    private static String tensor(Calibration.Array array) {
        return "layers." + array.layer() + "." + array.name();
    }

    /** Over the metadata and the arrays in their order, so that no part can change unnoticed. */
    private static String hash(Calibration calibration) {
        Sha256 digest = new Sha256();
        calibration.metadata().forEach((key, value) -> digest.add(key).add(value));
        for (Calibration.Array array : calibration.arrays()) {
            FloatBuffer values = array.values();
            digest.add(tensor(array)).add(Arrays.toString(array.shape()));
            ByteBuffer bytes = ByteBuffer.allocate(Float.BYTES * values.limit());
            bytes.order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().put(values);
            digest.add(bytes);
        }
        return digest.hex();
    }
}
