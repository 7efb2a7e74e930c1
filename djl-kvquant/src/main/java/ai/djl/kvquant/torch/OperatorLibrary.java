/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.torch;

import ai.djl.engine.Engine;
import ai.djl.engine.EngineException;
import ai.djl.engine.StandardCapabilities;
import ai.djl.util.Utils;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.Locale;
import java.util.function.Supplier;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Loads the operator library into the process, once: after the PyTorch engine, whose libtorch it
 * registers with.
 *
 * <p>The library comes from, in this order: the file that the system property {@code
 * ai.djl.kvquant.library} names; the jar {@code djl-kvquant-native}, extracted into DJL's engine
 * cache.
 */
public final class OperatorLibrary {

    private static final Logger logger = LoggerFactory.getLogger(OperatorLibrary.class);

    /** Names the file of an operator library to load instead of the one in the jar. */
    public static final String LIBRARY_PROPERTY = "ai.djl.kvquant.library";

    /** Names the file of a CUDA operator library to load instead of the one in the jar. */
    public static final String CUDA_LIBRARY_PROPERTY = "ai.djl.kvquant.cuda.library";

    /** What to do where nvidia-smi lists a GPU and libtorch sees none. */
    public static final String GPU_REMEDY =
            "this libtorch is one for CPUs: leave ai.djl.pytorch:pytorch-native-cpu off the class"
                    + " path and set PYTORCH_FLAVOR=cu128 in the environment (kvq needs the latter"
                    + " only), and DJL downloads the one for CUDA";

    private static final String CUDA_LOADED_PROPERTY = "ai.djl.kvquant.cuda.library.loaded";

    // A property of the JVM rather than of the class: a second class loader must not load a second
    // copy.
    private static final String LOADED_PROPERTY = "ai.djl.kvquant.library.loaded";
    private static final int[] OLDEST_LIBTORCH = {2, 7};

    private OperatorLibrary() {}

    /**
     * Loads the library if it is not loaded.
     *
     * @throws EngineException if there is none for this platform or libtorch is too old
     */
    public static void load() {
        Engine pytorch = Engine.getEngine("PyTorch");
        synchronized (System.class) {
            if (System.getProperty(LOADED_PROPERTY) != null) {
                return;
            }
            checkLibtorch(pytorch.getVersion());
            load(find(LIBRARY_PROPERTY, "kvquant_cpu", OperatorLibrary::missing), LOADED_PROPERTY);
        }
    }

    /**
     * Loads the operators for GPUs, if they are not loaded, after those for the CPU.
     *
     * @throws EngineException if there are none, or libtorch sees no GPU
     */
    public static void loadCuda() {
        load();
        Engine pytorch = Engine.getEngine("PyTorch");
        synchronized (System.class) {
            if (System.getProperty(CUDA_LOADED_PROPERTY) != null) {
                return;
            }
            if (!pytorch.hasCapability(StandardCapabilities.CUDA)) {
                throw new EngineException(
                        "A GPU was asked for, but libtorch "
                                + pytorch.getVersion()
                                + " sees none. If nvidia-smi lists one, "
                                + GPU_REMEDY
                                + "; else use the device cpu.");
            }
            load(
                    find(
                            CUDA_LIBRARY_PROPERTY,
                            "kvquant_cuda",
                            () ->
                                    "djl-kvquant was built without operators for GPUs. Build it"
                                            + " where nvcc is found, or set -D"
                                            + CUDA_LIBRARY_PROPERTY
                                            + "=FILE, or use the device cpu."),
                    CUDA_LOADED_PROPERTY);
        }
    }

    private static void load(Path file, String loadedProperty) {
        try {
            System.load(file.toAbsolutePath().toString());
        } catch (UnsatisfiedLinkError e) {
            throw new EngineException(
                    "The operator library " + file + " can not be loaded: " + e.getMessage(), e);
        }
        System.setProperty(loadedProperty, file.toString());
        logger.debug("Loaded {}", file);
    }

    /**
     * Returns the file that was loaded.
     *
     * @return the file, or null before {@link #load}
     */
    public static String loadedFile() {
        return System.getProperty(LOADED_PROPERTY);
    }

    /**
     * Returns the file of operators for GPUs that was loaded.
     *
     * @return the file, or null before {@link #loadCuda}
     */
    public static String loadedCudaFile() {
        return System.getProperty(CUDA_LOADED_PROPERTY);
    }

    private static void checkLibtorch(String version) {
        String[] parts = version.split("[.+-]");
        int major = Integer.parseInt(parts[0]);
        int minor = Integer.parseInt(parts[1]);
        if (major < OLDEST_LIBTORCH[0]
                || major == OLDEST_LIBTORCH[0] && minor < OLDEST_LIBTORCH[1]) {
            throw new EngineException(
                    "djl-kvquant needs libtorch 2.7 or later (it registers its operators through the"
                            + " C interface that 2.7 introduced), but DJL loaded "
                            + version
                            + ". Use ai.djl.pytorch 0.34 or later, or unset PYTORCH_VERSION.");
        }
    }

    private static Path find(String property, String name, Supplier<String> missing) {
        String override = System.getProperty(property);
        if (override != null) {
            Path file = Path.of(override);
            if (!Files.isRegularFile(file)) {
                throw new EngineException(
                        property + " names " + override + ", which is not a file.");
            }
            return file;
        }
        String library = System.mapLibraryName(name);
        String resource = "/native/" + platform() + "/" + library;
        try (InputStream in = OperatorLibrary.class.getResourceAsStream(resource)) {
            if (in == null) {
                throw new EngineException(missing.get());
            }
            return extract(in.readAllBytes(), library);
        } catch (IOException e) {
            throw new EngineException("The operator library can not be extracted: " + e, e);
        }
    }

    private static String missing() {
        return "djl-kvquant has no operator library for "
                + platform()
                + "; built and tested is linux-x86_64. Elsewhere, build native-ops with CMake and"
                + " set -D"
                + LIBRARY_PROPERTY
                + "=FILE, or check that djl-kvquant-native is on the class path.";
    }

    private static String platform() {
        String os = System.getProperty("os.name").toLowerCase(Locale.ROOT);
        String arch = System.getProperty("os.arch").toLowerCase(Locale.ROOT);
        String osName = os.startsWith("mac") ? "osx" : os.startsWith("windows") ? "win" : "linux";
        return osName + "-" + ("amd64".equals(arch) ? "x86_64" : arch);
    }

    /**
     * Into a directory named by the content, by rename: concurrent processes see whole files only.
     */
    private static Path extract(byte[] library, String name) throws IOException {
        String hash = sha256(library);
        Path directory = Utils.getEngineCacheDir("kvquant").resolve(hash.substring(0, 16));
        Path file = directory.resolve(name);
        if (Files.isRegularFile(file) && hash.equals(sha256(Files.readAllBytes(file)))) {
            return file;
        }
        Files.createDirectories(directory);
        Path temporary = Files.createTempFile(directory, "kvquant", ".tmp");
        Files.write(temporary, library);
        Utils.moveQuietly(temporary, file);
        return file;
    }

    private static String sha256(byte[] bytes) {
        try {
            return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
        } catch (NoSuchAlgorithmException e) {
            throw new AssertionError("every Java has SHA-256", e);
        }
    }
}
