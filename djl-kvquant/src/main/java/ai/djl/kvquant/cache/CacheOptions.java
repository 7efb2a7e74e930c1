/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Stream;

/**
 * The cache options of a model: {@code kv_cache_dtype} and the expert options, checked.
 *
 * <p>Options that do not begin with {@code kv_} belong to others and are ignored, except {@code
 * max_batch_size} and other spellings of cache options, which are refused.
 */
public final class CacheOptions {

    static final String DTYPE = "kv_cache_dtype";
    static final String CALIBRATION = "kv_calibration";

    private static final String SELF_CALIBRATION = "kv_self_calibration";
    private static final Set<String> NAMES =
            new LinkedHashSet<>(
                    Arrays.asList(
                            DTYPE,
                            GroupOptions.SIZE,
                            ExactOptions.SINKS,
                            ExactOptions.RECENT,
                            ExactOptions.ROLLBACK,
                            ExactOptions.SKIP_LAYERS,
                            ExactOptions.SPARSE,
                            GroupOptions.CLIP,
                            GroupOptions.FLOAT_ZERO,
                            RotationOptions.ROTATION,
                            RotationOptions.ORDER,
                            RotationOptions.VALUE_ROTATION,
                            BasisOptions.BASIS,
                            CodebookOptions.OUTLIERS,
                            CodebookOptions.NORMALIZED,
                            CALIBRATION,
                            SELF_CALIBRATION,
                            SizeOptions.TOKENS,
                            SizeOptions.MEMORY));
    private static final OptionNames SPELLINGS =
            new OptionNames(Stream.concat(NAMES.stream(), Stream.of(SizeOptions.BATCH)).toList());

    private final Map<String, String> texts;
    private final CacheDtype dtype;
    private final ExactOptions exact;
    private final RotationOptions rotation;
    private final GroupOptions groups;
    private final BasisOptions basis;
    private final CodebookOptions codebook;
    private final SizeOptions size;
    private final boolean selfCalibration;
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

    private CacheOptions(Map<String, String> texts, Calibration calibration) {
        this.texts = Map.copyOf(texts);
        this.calibration = calibration;
        OptionValues values = new OptionValues(this.texts);
        SPELLINGS.requireSpelling(this.texts.keySet());
        values.requireKnown(NAMES);
        dtype = CacheDtype.parse(texts.getOrDefault(DTYPE, "auto"));
        exact = new ExactOptions(values, dtype);
        rotation = RotationOptions.of(values, dtype);
        groups = new GroupOptions(values, dtype);
        if (!usesCalibration()) {
            rotation.refuseCalibration(values);
            values.refuse(CALIBRATION, "keys are stored with a calibration of the model", dtype);
        }
        basis = BasisOptions.of(values, dtype);
        codebook = CodebookOptions.of(values, dtype);
        size = SizeOptions.of(values);
        selfCalibration = values.bool(SELF_CALIBRATION, true);
    }

    /**
     * Returns options with nothing but a data type.
     *
     * @param dtype a value of kv_cache_dtype
     * @return the options
     */
    public static CacheOptions of(String dtype) {
        return new CacheOptions(Map.of(DTYPE, dtype));
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
        return size.maxBatchSize();
    }

    /**
     * Returns the options of a cache in which evaluation stores a whole text: without a window or
     * sparsity, with room for one sequence.
     *
     * @param tokens the longest text
     * @return the options
     */
    public CacheOptions forEvaluation(int tokens) {
        Map<String, String> changed = new HashMap<>(forOneSequence(tokens).texts);
        if (dtype.keyMethod().isQuantized()) {
            changed.put(ExactOptions.RECENT, "0");
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
        Map<String, String> changed = new HashMap<>(texts);
        changed.remove(SizeOptions.MEMORY);
        changed.remove(ExactOptions.SPARSE);
        changed.put(SizeOptions.TOKENS, Integer.toString(tokens));
        changed.put(SizeOptions.BATCH, "1");
        return new CacheOptions(changed, calibration);
    }

    /**
     * Tells whether kv_cache_tokens or kv_cache_memory says how large the cache is.
     *
     * @return false if it follows from the memory that is free
     */
    public boolean hasSize() {
        return size.tokens() > 0 || size.bytes() > 0;
    }

    /**
     * Returns kv_cache_memory.
     *
     * @return the bytes; 0: not set
     */
    public long memory() {
        return size.bytes();
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
        return new CacheOptions(texts, found);
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
        String name = dtype.keyName() + basis.suffix();
        if (dtype.valueMethod() == CacheMethod.KVQUANT
                && !dtype.valueName().equals(dtype.keyName())) {
            name += "-" + dtype.valueName();
        }
        return name + codebook.suffix();
    }

    /**
     * Returns kv_outliers, the share of elements that kvquant keeps apart, exactly.
     *
     * @return the share, by default 0.01; 0: none
     */
    public double outliers() {
        return codebook.outliers();
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

    /**
     * Returns whether one basis covers all kv heads of a layer: with SVDq, or if kv_basis is layer.
     *
     * @return whether it does; by default each kv head has its own
     */
    public boolean layerWideBasis() {
        return basis.isLayerWide();
    }

    /**
     * Returns whether kv_basis is prompt: keys are stored in a basis that is found from the keys of
     * their own prompt, if it is long enough.
     *
     * @return whether it is
     */
    public boolean promptBasis() {
        return basis.ofPrompt();
    }

    /**
     * Returns the channels that a basis mixes if kv_basis is band16 or band32: 8 or 16 pairs of
     * channels of a head that RoPE turns together.
     *
     * @return the number of channels; 0: all of a head or of a layer
     */
    public int basisBand() {
        return basis.band();
    }

    /**
     * Checks what depends on the model and needs no calibration.
     *
     * @param geometry the model's sizes
     * @throws IllegalArgumentException if the options do not fit the model
     */
    public void requireFits(CacheGeometry geometry) {
        basis.requireFits(geometry);
    }

    /**
     * Returns kv_calibration, the path of a calibration file.
     *
     * @return the path; empty if it is not set
     */
    public Optional<Path> calibrationFile() {
        return Optional.ofNullable(texts.get(CALIBRATION)).map(Path::of);
    }

    /**
     * Returns kv_self_calibration, whether a model without a calibration file may calibrate itself.
     *
     * @return whether it may, by default true
     */
    public boolean selfCalibration() {
        return selfCalibration;
    }

    /**
     * Returns these options with a calibration that serves to tell sizes only, if they need one.
     *
     * @param geometry the model's sizes
     * @return the options
     */
    public CacheOptions forSizes(CacheGeometry geometry) {
        return needsCalibration()
                ? withCalibration(NominalCalibration.of(geometry, dtype, basis.isLayerWide()))
                : this;
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

    ExactOptions exact() {
        return exact;
    }

    RotationOptions rotation() {
        return rotation;
    }

    GroupOptions groups() {
        return groups;
    }

    CodebookOptions codebook() {
        return codebook;
    }

    SizeOptions size() {
        return size;
    }

    /**
     * Returns kv_recent_tokens, the recent tokens that are read exactly; by default 128 with our
     * own methods, 0 with the papers'.
     *
     * @return the window, in tokens
     */
    public int window() {
        return exact.window();
    }

    /**
     * Returns kv_sparse_tokens, the stored tokens that a decoding step chooses to read besides
     * sinks and recent ones.
     *
     * @return the number of tokens, which counts in whole pages of 64; 0, the default: all are read
     */
    public int sparseTokens() {
        return exact.sparseTokens();
    }

    /**
     * Returns the recent tokens that each layer reads exactly: none in those of kv_skip_layers.
     *
     * @param numLayers the number of layers
     * @return the windows, in tokens
     */
    public long[] windows(int numLayers) {
        return exact.windows(numLayers);
    }

    /**
     * Returns the first tokens of a sequence that are kept exactly, if kv_sink_tokens is a number.
     *
     * @return the number of tokens; 0 if sinks are chosen otherwise
     */
    public int firstSinks() {
        return exact.firstSinks();
    }
}
