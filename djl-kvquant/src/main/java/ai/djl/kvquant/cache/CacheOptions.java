/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.LongStream;

/**
 * The cache options of a model: {@code kv_cache_dtype} and the expert options, checked.
 *
 * <p>Options that do not begin with {@code kv_} belong to others and are ignored, except {@code
 * max_batch_size}.
 */
public final class CacheOptions {

    private static final Set<String> NAMES =
            new LinkedHashSet<>(
                    Arrays.asList(
                            "kv_cache_dtype",
                            "kv_group_size",
                            "kv_sink_tokens",
                            "kv_recent_tokens",
                            "kv_rollback_tokens",
                            "kv_skip_layers",
                            "kv_sparse_tokens",
                            "kv_clip",
                            "kv_float_zero",
                            RotationOptions.ROTATION,
                            RotationOptions.ORDER,
                            RotationOptions.VALUE_ROTATION,
                            "kv_basis",
                            "kv_outliers",
                            "kv_qnorm",
                            "kv_calibration",
                            "kv_self_calibration",
                            "kv_cache_tokens",
                            "kv_cache_memory"));
    private static final int MAX_WINDOW = 1 << 20;
    private static final int MAX_SINKS = 1024;
    private static final int DEFAULT_BATCH = 4;
    private static final int DEFAULT_ROLLBACK = 16;
    private static final int DEFAULT_WINDOW = 128;
    private static final int DEFAULT_SINKS = 4;
    private static final double DEFAULT_OUTLIERS = 0.01;
    private static final double MAX_OUTLIERS = 0.25;
    private static final String BAND = "band";
    private static final long MAX_BASIS_BYTES = 256L << 20;

    private final Map<String, String> values;
    private final CacheDtype dtype;
    private final RotationOptions rotation;
    private final Calibration calibration;

    /**
     * Reads options.
     *
     * @param values option values by name, as text
     * @throws IllegalArgumentException if an option is unknown or has an impossible value
     */
    public CacheOptions(Map<String, String> values) {
        this(values, null);
    }

    private CacheOptions(Map<String, String> values, Calibration calibration) {
        this.values = Map.copyOf(values);
        this.calibration = calibration;
        for (String name : new TreeSet<>(values.keySet())) {
            if (name.startsWith("kv_") && !NAMES.contains(name)) {
                throw new IllegalArgumentException(
                        "Unknown option "
                                + name
                                + "; the cache options are "
                                + String.join(", ", NAMES)
                                + ".");
            }
        }
        dtype = CacheDtype.parse(values.getOrDefault("kv_cache_dtype", "auto"));
        if (quantizedKeys()) {
            window();
            sinkPolicy();
            rollback();
            sparseTokens();
        } else {
            refuse("kv_sparse_tokens", "keys are quantized");
            refuse("kv_sink_tokens", "keys are quantized");
            refuse("kv_recent_tokens", "keys are quantized");
            refuse("kv_rollback_tokens", "keys are quantized");
        }
        if (!dtype.isQuantized()) {
            refuse("kv_group_size", "keys or values are quantized");
            refuse("kv_clip", "keys or values are quantized");
            refuse("kv_float_zero", "keys or values are quantized");
            refuse("kv_skip_layers", "keys or values are quantized");
        }
        rotation = RotationOptions.of(values, dtype);
        if (!usesCalibration()) {
            rotation.refuseCalibration(values);
            refuse("kv_calibration", "keys are stored with a calibration of the model");
        }
        if (dtype.keys().method() != CacheMethod.LATENT
                && dtype.keys().method() != CacheMethod.SVDQ) {
            refuse("kv_basis", "keys are stored in a basis");
        }
        if (!dtype.uses(CacheMethod.KVQUANT)) {
            refuse("kv_outliers", "keys or values are stored by kvquant");
            refuse("kv_qnorm", "keys or values are stored by kvquant");
        }
        outliers();
        readsNormalized();
        selfCalibration();
        basis();
        floatZero();
        clip(2);
        maxBatchSize();
        cacheTokens();
        cacheMemory();
    }

    /**
     * Returns options with nothing but a data type.
     *
     * @param dtype a value of kv_cache_dtype
     * @return the options
     */
    public static CacheOptions of(String dtype) {
        return new CacheOptions(Map.of("kv_cache_dtype", dtype));
    }

    /**
     * Returns the data type.
     *
     * @return the data type
     */
    public CacheDtype dtype() {
        return dtype;
    }

    /**
     * Returns max_batch_size, the number of sequences that the default size of the cache allows
     * for.
     *
     * @return the number of sequences
     */
    public int maxBatchSize() {
        return integer("max_batch_size", DEFAULT_BATCH, 1, 1 << 16);
    }

    /**
     * Returns the options of a cache in which evaluation stores a whole text: without a window or
     * sparsity, with room for one sequence.
     *
     * @param tokens the longest text
     * @return the options
     */
    public CacheOptions forEvaluation(int tokens) {
        Map<String, String> changed = new HashMap<>(forOneSequence(tokens).values);
        if (quantizedKeys()) {
            changed.put("kv_recent_tokens", "0");
        }
        return new CacheOptions(changed, calibration);
    }

    /**
     * Returns the options of a cache with room for one sequence, otherwise as it is deployed.
     *
     * @param tokens the longest sequence
     * @return the options
     */
    public CacheOptions forOneSequence(int tokens) {
        Map<String, String> changed = new HashMap<>(values);
        changed.remove("kv_cache_memory");
        changed.remove("kv_sparse_tokens");
        changed.put("kv_cache_tokens", Integer.toString(tokens));
        changed.put("max_batch_size", "1");
        return new CacheOptions(changed, calibration);
    }

    /**
     * Tells whether the data type needs a calibration of the model.
     *
     * @return whether {@link #withCalibration} must be called before a cache is made
     */
    public boolean needsCalibration() {
        return dtype.keys().method().needsCalibration()
                || dtype.uses(CacheMethod.KVQUANT)
                || rotation.needsCalibration();
    }

    /**
     * Returns these options with a calibration.
     *
     * @param found what was measured on the model for the data type of keys
     * @return the options
     */
    public CacheOptions withCalibration(Calibration found) {
        return new CacheOptions(values, found);
    }

    /**
     * Returns what is known of the calibration.
     *
     * @return its metadata; empty if there is none
     */
    public Map<String, String> calibrationMetadata() {
        return calibration == null ? Map.of() : calibration.metadata();
    }

    /**
     * Tells whether the data type is stored better with a calibration of the model.
     *
     * @return whether {@link #withCalibration} makes a difference
     */
    public boolean usesCalibration() {
        return dtype.keys().method().usesCalibration() && !rotation.isNatural()
                || dtype.uses(CacheMethod.KVQUANT);
    }

    /**
     * Returns the name under which a calibration for these options is kept.
     *
     * @return the method of keys and what else decides its parameters
     */
    public String calibrationName() {
        boolean usual = dtype.keyMethod() != CacheMethod.LATENT || "head".equals(basis());
        String name = dtype.keyName() + (usual ? "" : "-" + basis());
        if (dtype.valueMethod() == CacheMethod.KVQUANT
                && !dtype.valueName().equals(dtype.keyName())) {
            name += "-" + dtype.valueName();
        }
        if (outliers() == DEFAULT_OUTLIERS) {
            return name;
        }
        return name + (outliers() == 0 ? "-dense" : "-outliers" + outliers());
    }

    /**
     * Returns kv_outliers, the share of elements that kvquant keeps apart, exactly.
     *
     * @return the share, by default 0.01; 0: none
     */
    public double outliers() {
        String value = values.getOrDefault("kv_outliers", "" + DEFAULT_OUTLIERS);
        try {
            double share = Double.parseDouble(value.strip());
            if (share >= 0 && share <= MAX_OUTLIERS) {
                return share;
            }
        } catch (NumberFormatException e) {
            // The message below says what is allowed.
        }
        throw new IllegalArgumentException(
                "kv_outliers is '"
                        + value
                        + "'; allowed: the share of elements that are kept exactly, 0 to "
                        + MAX_OUTLIERS
                        + ".");
    }

    /**
     * Returns the elements of a token's keys that kvquant can keep apart.
     *
     * @param geometry the model's sizes
     * @return their largest number
     */
    public int keyOutliers(CacheGeometry geometry) {
        return CodebookFormat.keyOutliers(geometry.channels(), outliers());
    }

    /**
     * Returns the elements of a token's values that kvquant keeps apart.
     *
     * @param geometry the model's sizes
     * @return their number, half of which are the smallest ones
     */
    public int valueOutliers(CacheGeometry geometry) {
        return CodebookFormat.valueOutliers(geometry.channels(), outliers());
    }

    /** kv_qnorm, whether codes of 2 bits are read as levels that restore mean and deviation. */
    boolean readsNormalized() {
        boolean normalized = bool("kv_qnorm", false);
        boolean possible =
                dtype.uses(CacheMethod.KVQUANT)
                        && (dtype.keyMethod() != CacheMethod.KVQUANT || dtype.keyBits() == 2)
                        && (dtype.valueMethod() != CacheMethod.KVQUANT || dtype.valueBits() == 2);
        if (normalized && !possible) {
            throw new IllegalArgumentException(
                    "kv_qnorm is true, which kv_cache_dtype "
                            + dtype.name()
                            + " does not offer; allowed with kvquant2 only.");
        }
        return normalized;
    }

    /**
     * Returns whether one basis covers all kv heads of a layer: with SVDq, or if kv_basis is layer.
     *
     * @return whether it does; by default each kv head has its own
     */
    public boolean layerWideBasis() {
        return "layer".equals(basis()) || promptBasis();
    }

    /**
     * Returns whether kv_basis is prompt: keys are stored in a basis that is found from the keys of
     * their own prompt, if it is long enough.
     *
     * @return whether it is
     */
    public boolean promptBasis() {
        return "prompt".equals(basis());
    }

    /**
     * Returns the channels that a basis mixes if kv_basis is band16 or band32: 8 or 16 pairs of
     * channels of a head that RoPE turns together.
     *
     * @return the number of channels; 0: all of a head or of a layer
     */
    public int basisBand() {
        return basis().startsWith(BAND) ? Integer.parseInt(basis().substring(BAND.length())) : 0;
    }

    private String basis() {
        boolean svdq = dtype.keys().method() == CacheMethod.SVDQ;
        List<String> allowed =
                svdq ? List.of("layer", "prompt") : List.of("head", "layer", BAND + 16, BAND + 32);
        String value = values.getOrDefault("kv_basis", allowed.get(0)).strip();
        if (!allowed.contains(value)) {
            throw new IllegalArgumentException(
                    "kv_basis is '"
                            + value
                            + "'; allowed with "
                            + dtype.keyName()
                            + ": "
                            + String.join(", ", allowed)
                            + ".");
        }
        return value;
    }

    /**
     * Checks what depends on the model and needs no calibration.
     *
     * @param geometry the model's sizes
     * @throws IllegalArgumentException if the options do not fit the model
     */
    public void requireFits(CacheGeometry geometry) {
        long basis = 4L * geometry.channels() * geometry.channels() * geometry.numLayers();
        if (layerWideBasis() && basis > MAX_BASIS_BYTES) {
            throw new IllegalArgumentException(
                    "kv_basis is "
                            + basis()
                            + ", whose bases would take "
                            + (basis >> 20)
                            + " MiB over all layers; allowed: "
                            + (MAX_BASIS_BYTES >> 20)
                            + " MiB. "
                            + (dtype.keys().method() == CacheMethod.SVDQ
                                    ? "Choose kv_cache_dtype=latent2."
                                    : "Set kv_basis=head."));
        }
        if (basisBand() > 0 && geometry.headDim() % basisBand() != 0) {
            throw new IllegalArgumentException(
                    "kv_basis is "
                            + basis()
                            + ", which needs a head_dim that is a multiple of "
                            + basisBand()
                            + ", but the model's is "
                            + geometry.headDim()
                            + ". Set kv_basis=head.");
        }
    }

    /**
     * Returns kv_calibration, the path of a calibration file.
     *
     * @return the path; empty if it is not set
     */
    public Optional<Path> calibrationFile() {
        return Optional.ofNullable(values.get("kv_calibration")).map(Path::of);
    }

    /**
     * Returns kv_self_calibration, whether a model without a calibration file may calibrate itself.
     *
     * @return whether it may, by default true
     */
    public boolean selfCalibration() {
        return bool("kv_self_calibration", true);
    }

    /**
     * Returns these options with a calibration that serves to tell sizes only, if they need one.
     *
     * @param geometry the model's sizes
     * @return the options
     */
    public CacheOptions forSizes(CacheGeometry geometry) {
        return needsCalibration() ? withCalibration(NominalCalibration.of(geometry, dtype)) : this;
    }

    /** What was measured on the model; null if nothing was and nothing must be. */
    Calibration calibration() {
        if (calibration == null && needsCalibration()) {
            throw new IllegalStateException(
                    "kv_cache_dtype "
                            + dtype.name()
                            + " needs a calibration of the model; call withCalibration first.");
        }
        return calibration;
    }

    RotationOptions rotation() {
        return rotation;
    }

    boolean quantizedKeys() {
        return dtype.keys().method().isQuantized();
    }

    /**
     * Returns kv_recent_tokens, the recent tokens that are read exactly; by default 128 with our
     * own methods, 0 with the papers'.
     *
     * @return the window, in tokens
     */
    public int window() {
        int usual = dtype.keys().method().keepsWindow() ? DEFAULT_WINDOW : 0;
        return quantizedKeys() ? integer("kv_recent_tokens", usual, 0, MAX_WINDOW) : 0;
    }

    /**
     * Returns kv_sparse_tokens, the stored tokens that a decoding step chooses to read besides
     * sinks and recent ones.
     *
     * @return the number of tokens, which counts in whole pages of 64; 0, the default: all are read
     */
    public int sparseTokens() {
        return values.containsKey("kv_sparse_tokens")
                ? integer("kv_sparse_tokens", 0, 1, 1 << 30)
                : 0;
    }

    /**
     * Returns the recent tokens that each layer reads exactly: none in those of kv_skip_layers.
     *
     * @param numLayers the number of layers
     * @return the windows, in tokens
     */
    public long[] windows(int numLayers) {
        Set<Integer> skipped = skipLayers(numLayers);
        return LongStream.range(0, numLayers)
                .map(layer -> skipped.contains((int) layer) ? 0 : window())
                .toArray();
    }

    int rollback() {
        return integer("kv_rollback_tokens", DEFAULT_ROLLBACK, 0, MAX_WINDOW);
    }

    SinkPolicy sinkPolicy() {
        if (!quantizedKeys()) {
            return SinkPolicy.NONE;
        }
        String usual =
                dtype.keys().method() == CacheMethod.ROTATEKV ? "massive" : "" + usualSinks();
        if ("massive".equals(values.getOrDefault("kv_sink_tokens", usual))) {
            if (dtype.keys().method().needsCalibration()) {
                throw new IllegalArgumentException(
                        "kv_sink_tokens is massive, which kv_cache_dtype "
                                + dtype.name()
                                + " does not offer; allowed: the number of first tokens to keep"
                                + " exactly.");
            }
            return SinkPolicy.MASSIVE;
        }
        return parseFirstSinks() == 0 ? SinkPolicy.NONE : SinkPolicy.FIRST;
    }

    int maxSinks() {
        return switch (sinkPolicy()) {
            case NONE -> 0;
            case FIRST -> parseFirstSinks();
            case MASSIVE -> KvCache.MASSIVE_ENTRIES;
        };
    }

    /**
     * Returns the first tokens of a sequence that are kept exactly, if kv_sink_tokens is a number.
     *
     * @return the number of tokens; 0 if sinks are chosen otherwise
     */
    public int firstSinks() {
        if (!quantizedKeys() || sinkPolicy() == SinkPolicy.MASSIVE) {
            return 0;
        }
        return parseFirstSinks();
    }

    private int parseFirstSinks() {
        String value = values.get("kv_sink_tokens");
        try {
            return integer("kv_sink_tokens", usualSinks(), 0, MAX_SINKS);
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException(
                    "kv_sink_tokens is '"
                            + value
                            + "'; allowed: massive (the prompt's massive activations) or the number"
                            + " of first tokens to keep exactly, 0 to "
                            + MAX_SINKS
                            + ".",
                    e);
        }
    }

    /** Sinks by default, where they are the first tokens: KVQuant keeps one. */
    private int usualSinks() {
        return dtype.keys().method() == CacheMethod.KVQUANT ? 1 : DEFAULT_SINKS;
    }

    int groupSize(CacheGeometry geometry) {
        String value = values.getOrDefault("kv_group_size", "" + geometry.headDim());
        try {
            int size = Integer.parseInt(value.strip());
            if (size >= 16 && size % 16 == 0 && geometry.channels() % size == 0) {
                return size;
            }
        } catch (NumberFormatException e) {
            // The message below says what is allowed.
        }
        throw new IllegalArgumentException(
                "kv_group_size is '"
                        + value
                        + "'; allowed: multiples of 16 that divide the "
                        + geometry.channels()
                        + " key channels of a layer.");
    }

    /** RotateKV's clip ratio, 0.8 at 2 bits and 1 above. */
    float clip(int bits) {
        String value = values.get("kv_clip");
        if (value == null) {
            return bits == 2 ? 0.8f : 1f;
        }
        try {
            float clip = Float.parseFloat(value);
            if (clip > 0 && clip <= 1) {
                return clip;
            }
        } catch (NumberFormatException e) {
            // The message below says what is allowed.
        }
        throw new IllegalArgumentException(
                "kv_clip is '" + value + "'; allowed: a number above 0 and at most 1.");
    }

    boolean floatZero() {
        return bool("kv_float_zero", false);
    }

    private boolean bool(String name, boolean fallback) {
        String value = values.getOrDefault(name, Boolean.toString(fallback)).strip();
        if (!"true".equals(value) && !"false".equals(value)) {
            throw new IllegalArgumentException(name + " is '" + value + "'; allowed: true, false.");
        }
        return Boolean.parseBoolean(value);
    }

    /** Layers that are kept in fp16. */
    Set<Integer> skipLayers(int numLayers) {
        String value = values.getOrDefault("kv_skip_layers", "").strip();
        if (value.isEmpty()) {
            return Set.of();
        }
        try {
            Set<Integer> layers =
                    Arrays.stream(value.split("[,;\\s]+"))
                            .map(Integer::valueOf)
                            .collect(Collectors.toSet());
            if (layers.stream().allMatch(l -> l >= 0 && l < numLayers)) {
                return layers;
            }
        } catch (NumberFormatException e) {
            // The message below says what is allowed.
        }
        throw new IllegalArgumentException(
                "kv_skip_layers is '"
                        + value
                        + "'; allowed: layer numbers 0 to "
                        + (numLayers - 1)
                        + ", separated by commas.");
    }

    /** kv_cache_tokens, or 0 if it is not set. */
    long cacheTokens() {
        if (values.containsKey("kv_cache_tokens") && values.containsKey("kv_cache_memory")) {
            throw new IllegalArgumentException(
                    "kv_cache_tokens and kv_cache_memory are both set; set one of them.");
        }
        return integer(
                "kv_cache_tokens", 0, values.containsKey("kv_cache_tokens") ? 1 : 0, 1 << 30);
    }

    /** kv_cache_memory in bytes, or 0 if it is not set. */
    long cacheMemory() {
        String value = values.get("kv_cache_memory");
        if (value == null) {
            return 0;
        }
        String text = value.strip().toLowerCase(Locale.ROOT);
        Matcher matcher = Pattern.compile("(\\d{1,15})\\s*([kmgt]?)i?b?").matcher(text);
        if (!matcher.matches() || bytes(matcher) <= 0) {
            throw new IllegalArgumentException(
                    "kv_cache_memory is '"
                            + value
                            + "'; allowed: bytes, or a number with k, m or g, for example 2g.");
        }
        return bytes(matcher);
    }

    /** The number times its unit; 0 where that is more than can be counted. */
    private static long bytes(Matcher matcher) {
        String unit = matcher.group(2);
        int shift = unit.isEmpty() ? 0 : 10 * (1 + "kmgt".indexOf(unit));
        long number = Long.parseLong(matcher.group(1));
        return number > Long.MAX_VALUE >> shift ? 0 : number << shift;
    }

    private void refuse(String name, String condition) {
        if (values.containsKey(name)) {
            throw new IllegalArgumentException(
                    name
                            + " has an effect only when "
                            + condition
                            + "; kv_cache_dtype is "
                            + dtype.name()
                            + ". Remove it or choose a quantized kv_cache_dtype.");
        }
    }

    private int integer(String name, int fallback, int low, int high) {
        String value = values.get(name);
        if (value == null) {
            return fallback;
        }
        try {
            int number = Integer.parseInt(value.strip());
            if (number >= low && number <= high) {
                return number;
            }
        } catch (NumberFormatException e) {
            // The message below says what is allowed.
        }
        throw new IllegalArgumentException(
                name
                        + " is '"
                        + value
                        + "'; allowed: a whole number from "
                        + low
                        + " to "
                        + high
                        + ".");
    }
}
