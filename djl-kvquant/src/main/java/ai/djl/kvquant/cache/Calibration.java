/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Pattern;

/**
 * What a method learnt about a model offline: named float arrays for each layer, and texts that say
 * where they come from. Immutable, so that threads may share it.
 */
public final class Calibration {

    /** The key of the metadata under which the calibrated kv_cache_dtype stands. */
    public static final String DTYPE = "kv_cache_dtype";

    private static final Pattern NAME = Pattern.compile("[A-Za-z0-9_][A-Za-z0-9_.-]*");

    private final Map<String, String> metadata;
    private final Map<Integer, Map<String, Values>> layers;

    private Calibration(Builder builder) {
        metadata = builder.metadata;
        Map<Integer, Map<String, Values>> copy = new TreeMap<>();
        builder.layers.forEach((layer, arrays) -> copy.put(layer, new TreeMap<>(arrays)));
        layers = copy;
    }

    private record Values(float[] values, long[] shape) {}

    /**
     * An array of a layer, as it is to be written.
     *
     * @param layer the number of the layer
     * @param name the name of the array
     * @param values its elements in row-major order, read-only
     * @param shape its dimensions, outermost first
     */
    public record Array(int layer, String name, FloatBuffer values, long[] shape) {}

    /**
     * Returns texts about the calibration, for example the model, the text and the settings.
     *
     * @return an unmodifiable map by key, in the order of the keys
     */
    public Map<String, String> metadata() {
        return metadata;
    }

    /**
     * Returns whether a layer has an array.
     *
     * @param layer the number of the layer
     * @param name the name of the array
     * @return whether it is there
     */
    public boolean has(int layer, String name) {
        return layers.getOrDefault(layer, Map.of()).containsKey(name);
    }

    /**
     * Returns an array of a layer.
     *
     * @param layer the number of the layer
     * @param name the name of the array
     * @return a copy of its elements in row-major order
     * @throws IllegalStateException if the layer has no such array
     */
    public float[] get(int layer, String name) {
        return values(layer, name).values.clone();
    }

    int[] integers(int layer, String name) {
        float[] numbers = values(layer, name).values;
        int[] integers = new int[numbers.length];
        for (int i = 0; i < numbers.length; ++i) {
            integers[i] = Math.round(numbers[i]);
        }
        return integers;
    }

    /**
     * Returns the dimensions of an array of a layer.
     *
     * @param layer the number of the layer
     * @param name the name of the array
     * @return a copy of its dimensions, outermost first
     * @throws IllegalStateException if the layer has no such array
     */
    public long[] shape(int layer, String name) {
        return values(layer, name).shape.clone();
    }

    /**
     * Returns all arrays, by layer and then by name.
     *
     * @return a new list
     */
    public List<Array> arrays() {
        List<Array> arrays = new ArrayList<>();
        layers.forEach(
                (layer, named) ->
                        named.forEach(
                                (name, array) ->
                                        arrays.add(
                                                new Array(
                                                        layer,
                                                        name,
                                                        FloatBuffer.wrap(array.values)
                                                                .asReadOnlyBuffer(),
                                                        array.shape.clone()))));
        return arrays;
    }

    private Values values(int layer, String name) {
        Map<String, Values> arrays = layers.getOrDefault(layer, Map.of());
        Values array = arrays.get(name);
        if (array == null) {
            throw new IllegalStateException(
                    "The calibration has no "
                            + name
                            + " for layer "
                            + layer
                            + (arrays.isEmpty()
                                    ? "; it has nothing for this layer"
                                    : ", only " + String.join(", ", arrays.keySet()))
                            + ". Calibrate again"
                            + (metadata.containsKey(DTYPE)
                                    ? " for kv_cache_dtype " + metadata.get(DTYPE)
                                    : "")
                            + ".");
        }
        return array;
    }

    /** Collects the arrays of a calibration. */
    public static final class Builder {

        private final Map<String, String> metadata;
        private final Map<Integer, Map<String, Values>> layers = new TreeMap<>();

        /**
         * Creates a builder without arrays.
         *
         * @param metadata texts about the calibration
         */
        public Builder(Map<String, String> metadata) {
            this.metadata = Collections.unmodifiableMap(new TreeMap<>(metadata));
        }

        /**
         * Adds an array to a layer.
         *
         * @param layer the number of the layer, from 0
         * @param name the name of the array: letters, digits, underscores, dots and hyphens
         * @param values its elements in row-major order; copied
         * @param shape its dimensions, outermost first; none: one dimension with all elements
         * @return this builder
         * @throws IllegalArgumentException if the layer is negative, the name is taken or not
         *     allowed, or the shape has another number of elements
         */
        public Builder put(int layer, String name, float[] values, long... shape) {
            long[] dimensions = shape.length == 0 ? new long[] {values.length} : shape.clone();
            if (layer < 0 || !NAME.matcher(name).matches()) {
                throw new IllegalArgumentException(
                        "Layer "
                                + layer
                                + " and '"
                                + name
                                + "' do not name an array; allowed: layers from 0, names of"
                                + " letters, digits, underscores, dots and hyphens.");
            }
            if (elements(dimensions) != values.length) {
                throw new IllegalArgumentException(
                        "Array "
                                + name
                                + " has "
                                + values.length
                                + " elements, which do not make the shape "
                                + Arrays.toString(dimensions)
                                + ".");
            }
            Values array = new Values(values.clone(), dimensions);
            Map<String, Values> arrays = layers.computeIfAbsent(layer, number -> new TreeMap<>());
            if (arrays.putIfAbsent(name, array) != null) {
                throw new IllegalArgumentException(
                        "Layer " + layer + " has an array " + name + " already.");
            }
            return this;
        }

        /**
         * Adds an array of one dimension of whole numbers to a layer.
         *
         * @param layer the number of the layer, from 0
         * @param name the name of the array
         * @param values its elements, exact as floats
         * @return this builder
         * @throws IllegalArgumentException as for floats
         */
        public Builder put(int layer, String name, int[] values) {
            float[] floats = new float[values.length];
            for (int i = 0; i < values.length; ++i) {
                floats[i] = values[i];
            }
            return put(layer, name, floats);
        }

        /**
         * Builds the calibration.
         *
         * @return the calibration with the arrays added so far
         */
        public Calibration build() {
            return new Calibration(this);
        }

        /** The number of elements, or -1 if no array has that many. */
        private static long elements(long[] shape) {
            long elements = 1;
            for (long dimension : shape) {
                if (dimension < 0 || dimension > Integer.MAX_VALUE) {
                    return -1;
                }
                elements = Math.min(elements * dimension, Integer.MAX_VALUE);
            }
            return elements;
        }
    }
}
