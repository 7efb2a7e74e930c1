/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.Calibration;
import ai.djl.kvquant.llama.LlamaGradients;
import ai.djl.kvquant.llama.LlamaLayers;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.kvquant.llama.RopeAngles;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BiConsumer;
import java.util.function.IntConsumer;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/**
 * Measures a model on a text and chooses the parameters of cache data types, layer by layer in one
 * pass: memory is bounded by the projections of one layer. Gradients take a pass back, too, for
 * which inputs of layers are kept.
 */
public final class Calibrator {

    private static final int WINDOW = 2048;
    private static final int SHORTEST_TEXT = 64;

    /** The first tokens of a text are sinks, which are not stored as codes. */
    static final int SKIPPED = 4;

    private final LlamaModel model;
    private final List<int[]> windows;
    private final RopeAngles angles;

    /**
     * Prepares a calibration.
     *
     * @param model the model
     * @param windows token ids of pieces of text, each at most as long as the model's context
     * @throws IllegalArgumentException if there is no window
     */
    public Calibrator(LlamaModel model, List<int[]> windows) {
        this.model = model;
        this.windows = List.copyOf(windows);
        int longest =
                windows.stream()
                        .mapToInt(window -> window.length)
                        .max()
                        .orElseThrow(
                                () ->
                                        new IllegalArgumentException(
                                                "There is no text to calibrate on; give one or"
                                                        + " more windows of tokens."));
        angles = new RopeAngles(model.geometry().inverseFrequencies(), longest);
    }

    /**
     * Cuts a text into windows, spread evenly over it.
     *
     * @param tokens the text's token ids
     * @param limit tokens of all windows together, at most
     * @param longest tokens of a window, at most
     * @return the windows
     * @throws IllegalArgumentException if the text is too short to tell anything
     */
    public static List<int[]> windows(int[] tokens, int limit, int longest) {
        int used = Math.min(tokens.length, limit);
        if (used < SHORTEST_TEXT) {
            throw new IllegalArgumentException(
                    "A calibration on "
                            + used
                            + " tokens would tell nothing; give "
                            + SHORTEST_TEXT
                            + " or more, better thousands.");
        }
        int most = Math.min(longest, WINDOW);
        int count = (used + most - 1) / most;
        int length = used / count;
        List<int[]> windows = new ArrayList<>();
        for (int i = 0; i < count; ++i) {
            int begin = Math.toIntExact((long) (tokens.length / length) * i / count) * length;
            windows.add(Arrays.copyOfRange(tokens, begin, begin + length));
        }
        return windows;
    }

    /**
     * Calibrates in a forward pass.
     *
     * @param caches what to calibrate for
     * @param metadata texts to keep with the result
     * @param progress told the number of layers that are done
     * @return a calibration for each
     */
    public List<Calibration> run(
            List<CacheOptions> caches, Map<String, String> metadata, IntConsumer progress) {
        return run(caches, Sensitivity.QUERIES, metadata, progress);
    }

    /**
     * Calibrates.
     *
     * @param caches what to calibrate for
     * @param sensitivity how to find out what matters
     * @param metadata texts to keep with the result
     * @param progress told the number of layers that are done; with gradients each counts twice,
     *     for there is a pass forward and one back
     * @return a calibration for each
     * @throws IllegalArgumentException if gradients are wanted that none of the caches uses
     */
    public List<Calibration> run(
            List<CacheOptions> caches,
            Sensitivity sensitivity,
            Map<String, String> metadata,
            IntConsumer progress) {
        CacheGeometry geometry = model.geometry();
        List<KeyFit> fits = caches.stream().map(cache -> KeyFit.of(cache, geometry)).toList();
        boolean gradients = sensitivity == Sensitivity.GRADIENTS;
        if (gradients && fits.stream().noneMatch(KeyFit::weighsErrors)) {
            throw noUseOfGradients(caches);
        }
        List<Calibration.Builder> builders = new ArrayList<>();
        for (int i = 0; i < fits.size(); ++i) {
            boolean used = gradients && fits.get(i).weighsErrors();
            builders.add(builder(caches.get(i), used, metadata));
        }
        BiConsumer<Integer, LayerSamples> writer =
                (layer, samples) -> {
                    for (int i = 0; i < fits.size(); ++i) {
                        boolean recent = caches.get(i).window() > 0;
                        fits.get(i).write(builders.get(i), layer, samples.readBy(recent));
                    }
                };
        if (gradients) {
            runBack(writer, progress);
        } else {
            Set<Boolean> readers = new TreeSet<>();
            for (int i = 0; i < fits.size(); ++i) {
                if (fits.get(i).weighsErrors()) {
                    readers.add(caches.get(i).window() > 0);
                }
            }
            runForward(readers, writer, progress);
        }
        for (int i = 0; i < fits.size(); ++i) {
            fits.get(i).finish(builders.get(i));
        }
        return builders.stream().map(Calibration.Builder::build).toList();
    }

    private static IllegalArgumentException noUseOfGradients(List<CacheOptions> caches) {
        String names =
                caches.stream()
                        .map(CacheOptions::calibrationName)
                        .collect(Collectors.joining(", "));
        return new IllegalArgumentException(
                "Gradients were asked for, of which kv_cache_dtype "
                        + names
                        + " makes no use; allowed: int, latent and kvquant caches. Calibrate without"
                        + " gradients.");
    }

    private void runForward(
            Set<Boolean> readers, BiConsumer<Integer, LayerSamples> writer, IntConsumer progress) {
        try (LlamaLayers layers = new LlamaLayers(model, angles.positions());
                NDManager inputs = layers.newManager()) {
            List<NDArray> hidden = new ArrayList<>();
            windows.forEach(window -> hidden.add(layers.embed(inputs, window)));
            for (int layer = 0; layer < model.geometry().numLayers(); ++layer) {
                try (NDManager scope = layers.newManager()) {
                    writer.accept(layer, advance(layers, layer, hidden, readers, scope));
                }
                progress.accept(layer + 1);
            }
        }
    }

    private void runBack(BiConsumer<Integer, LayerSamples> writer, IntConsumer progress) {
        int stride = BackwardPass.stride(model, windows);
        AtomicInteger done = new AtomicInteger();
        try (BackwardPass pass = new BackwardPass(model, windows, stride)) {
            pass.start(() -> progress.accept(done.incrementAndGet()));
            for (int layer = model.geometry().numLayers() - 1; layer >= 0; --layer) {
                try (NDManager scope = pass.newManager()) {
                    writer.accept(layer, samples(pass.back(scope), scope));
                }
                progress.accept(done.incrementAndGet());
            }
        }
    }

    private LayerSamples samples(List<LlamaGradients.Output> outputs, NDManager scope) {
        LayerSamples samples =
                samples(used(outputs.stream().map(LlamaGradients.Output::qkv)), scope);
        return samples.with(
                new LayerSamples.Gradients(
                        used(outputs.stream().map(LlamaGradients.Output::keys)),
                        used(outputs.stream().map(LlamaGradients.Output::values))));
    }

    /** What becomes of the first tokens is not of interest. */
    private static NDArray used(Stream<NDArray> windows) {
        NDList kept = new NDList();
        windows.forEach(window -> kept.add(window.get(SKIPPED + ":")));
        return NDArrays.concat(kept, 0);
    }

    private static Calibration.Builder builder(
            CacheOptions cache, boolean gradients, Map<String, String> metadata) {
        Map<String, String> named = new TreeMap<>(metadata);
        named.put(CalibrationFile.SETTINGS, "{\"gradients\":" + gradients + "}");
        named.put(Calibration.DTYPE, cache.calibrationName());
        return new Calibration.Builder(named);
    }

    /** Runs a layer on all windows, whose hidden states it replaces. */
    private LayerSamples advance(
            LlamaLayers layers,
            int layer,
            List<NDArray> hidden,
            Set<Boolean> readers,
            NDManager scope) {
        List<NDArray> projections = new ArrayList<>();
        Map<Boolean, KeyImportance> importances = importances(readers);
        NDArray outputGram = importances.isEmpty() ? null : layers.outputGram(scope, layer);
        for (int w = 0; w < hidden.size(); ++w) {
            NDArray input = hidden.get(w);
            LlamaLayers.Output output = layers.run(input.getManager(), layer, input);
            output.qkv().attach(scope);
            projections.add(output.qkv());
            if (!importances.isEmpty()) {
                weigh(importances.values(), output, outputGram, scope);
            }
            hidden.set(w, output.hidden());
            input.close();
        }
        return samples(used(projections.stream()), scope).with(importances);
    }

    private void weigh(
            Collection<KeyImportance> importances,
            LlamaLayers.Output output,
            NDArray outputGram,
            NDManager scope) {
        try (NDManager text = scope.newSubManager()) {
            NDArray residual = output.hidden().square().mean(new int[] {1});
            residual.attach(text);
            LayerSamples ofText = whole(output.qkv(), text);
            importances.forEach(each -> each.add(ofText, outputGram, residual));
        }
    }

    private Map<Boolean, KeyImportance> importances(Set<Boolean> readers) {
        int tokens = windows.stream().mapToInt(window -> window.length - SKIPPED).sum();
        Map<Boolean, KeyImportance> importances = new HashMap<>();
        for (boolean recent : readers) {
            importances.put(
                    recent, new KeyImportance(model.geometry(), recent, windows.size(), tokens));
        }
        return importances;
    }

    /** The samples of a whole text. */
    private LayerSamples whole(NDArray qkv, NDManager scope) {
        NDArray attached = qkv.duplicate();
        attached.attach(scope);
        int length = Math.toIntExact(qkv.getShape().get(0));
        return samples(attached, IntStream.range(0, length).toArray(), scope);
    }

    private LayerSamples samples(NDArray qkv, NDManager scope) {
        IntStream positions =
                windows.stream().flatMapToInt(window -> IntStream.range(SKIPPED, window.length));
        return samples(qkv, positions.toArray(), scope);
    }

    private LayerSamples samples(NDArray qkv, int[] positions, NDManager scope) {
        return LayerSamples.of(
                model.geometry(), qkv, angles.cos(scope, positions), angles.sin(scope, positions));
    }
}
