/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.Calibration;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.regex.Pattern;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Where the calibration of one preset for one model lies: in the file that the user names with
 * {@code kv_calibration}, else beside the model as {@code kvquant-<preset>.safetensors}, else in
 * the user's cache.
 *
 * <p>A file that the user named, or that lies beside the model, must fit the model. One in the
 * user's cache is this library's own: if it does not fit, the model is calibrated again.
 */
public final class CalibrationStore {

    /** How the names of calibration files beside a model begin. */
    static final String PREFIX = "kvquant-";

    private static final Logger logger = LoggerFactory.getLogger(CalibrationStore.class);

    private static final Pattern PRESET =
            Pattern.compile("[a-z0-9]+(\\.[0-9]+)?(-[a-zA-Z0-9.]+)*(/[a-z0-9]+(\\.[0-9]+)?)?");
    private static final String SUFFIX = ".safetensors";
    private static final int FINGERPRINT_DIGITS = 16;

    private final String preset;
    private final String fingerprint;
    private final Path named;
    private final Path beside;
    private final Path cached;

    /**
     * Creates a store that looks into the user's cache: {@code $XDG_CACHE_HOME}, else {@code
     * ~/.cache}.
     *
     * @param named the value of kv_calibration; null if it is not set
     * @param modelDir the directory of the model; null if it has none
     * @param preset the value of kv_cache_dtype, as {@link ai.djl.kvquant.cache.CacheDtype#name()}
     *     writes it
     * @param fingerprint the fingerprint of the model
     * @throws IllegalArgumentException if no preset is called like that
     */
    public CalibrationStore(Path named, Path modelDir, String preset, String fingerprint) {
        this(named, modelDir, preset, fingerprint, userCache());
    }

    CalibrationStore(Path named, Path modelDir, String preset, String fingerprint, Path userCache) {
        if (!PRESET.matcher(preset).matches()) {
            throw new IllegalArgumentException(
                    "'" + preset + "' does not name a preset; allowed: names like int2, K/V.");
        }
        this.preset = preset;
        this.fingerprint = fingerprint;
        this.named = named;
        String name = preset.replace('/', '_') + SUFFIX;
        beside = modelDir == null ? null : modelDir.resolve(fileName(preset));
        String id = fingerprint.substring(0, Math.min(FINGERPRINT_DIGITS, fingerprint.length()));
        cached =
                userCache == null
                        ? null
                        : userCache
                                .resolve("djl-kvquant")
                                .resolve("calibration")
                                .resolve(id + "-" + name);
    }

    /**
     * Returns the name of a preset's file beside a model.
     *
     * @param preset the name of the preset
     * @return the name
     */
    public static String fileName(String preset) {
        return PREFIX + preset.replace('/', '_') + SUFFIX;
    }

    /**
     * Returns the file that {@link #load} reads.
     *
     * @return the file; empty if there is none
     * @throws IllegalArgumentException if kv_calibration names no file
     */
    public Optional<Path> find() {
        if (named != null) {
            if (!Files.isRegularFile(named)) {
                throw new IllegalArgumentException(
                        "kv_calibration is '"
                                + named
                                + "', which is not a file; allowed: the path of a calibration"
                                + " file. "
                                + CalibrationFile.remedy(preset));
            }
            return Optional.of(named);
        }
        for (Path file : places()) {
            if (Files.exists(file)) {
                return Optional.of(file);
            }
        }
        return Optional.empty();
    }

    /**
     * Reads the calibration.
     *
     * @return the calibration; empty if there is none, or only one in the user's cache that does
     *     not fit, so that the model has to be calibrated
     * @throws IllegalArgumentException if the user's file is of another version, preset or model
     * @throws IOException if the user's file is damaged or cannot be read
     */
    public Optional<Calibration> load() throws IOException {
        Optional<Path> file = find();
        if (file.isEmpty()) {
            return Optional.empty();
        }
        try {
            Calibration calibration = CalibrationFile.read(file.get(), preset, fingerprint);
            logger.debug("Read the calibration of {} from {}", preset, file.get());
            return Optional.of(calibration);
        } catch (IOException | IllegalArgumentException e) {
            if (named != null || !file.get().equals(cached)) {
                throw e;
            }
            logger.warn("Calibrating {} again: {}", preset, e.getMessage());
            return Optional.empty();
        }
    }

    /**
     * Keeps a calibration for the next load: beside the model, else in the user's cache.
     *
     * @param calibration the calibration
     * @return the file; empty if neither place can be written
     * @throws IllegalArgumentException if the calibration is not fit to be kept, see {@link
     *     CalibrationFile#write}
     */
    public Optional<Path> keep(Calibration calibration) {
        List<String> problems = new ArrayList<>();
        for (Path file : places()) {
            try {
                if (file.equals(cached)) {
                    Files.createDirectories(file.getParent());
                }
                CalibrationFile.write(file, calibration);
                logger.info("Kept the calibration of {} in {}", preset, file);
                return Optional.of(file);
            } catch (IOException e) {
                problems.add(e.toString());
            }
        }
        logger.warn(
                "The calibration of {} can not be kept, so that each load calibrates again: {}",
                preset,
                problems.isEmpty() ? "there is no place for it" : String.join("; ", problems));
        return Optional.empty();
    }

    /** The places without a choice of the user's, the best first. */
    private List<Path> places() {
        List<Path> places = new ArrayList<>();
        if (beside != null) {
            places.add(beside);
        }
        if (cached != null) {
            places.add(cached);
        }
        return places;
    }

    /** The directory of the user's caches; null if the system names none. */
    static Path userCache() {
        String xdg = System.getenv("XDG_CACHE_HOME");
        // the specification has relative values ignored
        if (xdg != null && Path.of(xdg).isAbsolute()) {
            return Path.of(xdg);
        }
        String home = System.getProperty("user.home");
        return home == null ? null : Path.of(home, ".cache");
    }
}
