/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.engine.EngineException;
import ai.djl.kvquant.cache.CacheBatch;
import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.kvquant.cache.CacheOptions;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.torch.Operators;
import ai.djl.kvquant.torch.TorchArchive;
import ai.djl.kvquant.torch.TorchModule;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;

/**
 * Runs a model that someone traced with keys and values as inputs and outputs. Between calls they
 * are in the cache; for a call they are read back to floats, which the graph copies and extends. So
 * memory is saved while nothing is computed, and neither time nor the peak during a call.
 */
final class TracedRunner implements CausalRunner {

    private static final String SIZES =
            "Set the arguments numLayers, numAttentionHeads (the heads of keys) and kvDim as it was"
                    + " traced.";

    private final TorchModule model;
    private final TorchModule code;
    private final KvCache cache;

    /**
     * Loads a model.
     *
     * @param manager what closes the model and its cache
     * @param file the TorchScript file
     * @param geometry the model's sizes
     * @param options the cache options
     */
    TracedRunner(NDManager manager, Path file, CacheGeometry geometry, CacheOptions options) {
        cache = new KvCache(manager, new Operators(manager), geometry, options);
        code = TorchModule.load(manager, TorchArchive.write(TracedCode.methods(geometry)));
        model = TorchModule.load(manager, file);
    }

    /** {@inheritDoc} */
    @Override
    public KvCache cache() {
        return cache;
    }

    /** {@inheritDoc} */
    @Override
    public int numLayers() {
        return cache.geometry().numLayers();
    }

    /** {@inheritDoc} */
    @Override
    public void check(CausalInputs inputs) {
        CacheGeometry geometry = cache.geometry();
        if (inputs.pairs() != geometry.numLayers()) {
            throw new IllegalArgumentException(
                    "A traced model needs a pair of past keys and values for each of its layers, but"
                            + " got "
                            + inputs.pairs()
                            + " for "
                            + geometry.numLayers()
                            + " layers. Set the argument numLayers, which the translator reads as"
                            + " well.");
        }
    }

    /** {@inheritDoc} */
    @Override
    public NDList run(NDManager owner, CausalInputs inputs, List<CacheSequence> rows) {
        List<int[]> tokens = inputs.tokens();
        int[] counts = tokens.stream().mapToInt(t -> t.length).toArray();
        long[] past = rows.stream().mapToLong(CacheSequence::length).toArray();
        requireRoom(past, counts);
        boolean prompt = inputs.newTokens() > 1 || Arrays.stream(past).anyMatch(p -> p == 0);
        // Graphs are traced with some past: there is a column of padding if there is none.
        long columns = Math.max(1, Arrays.stream(past).max().orElseThrow());
        try (NDManager scope = owner.newSubManager()) {
            CacheBatch tables = CacheBatch.reserve(scope, cache, rows, counts, prompt);
            NDList outputs = forward(inputs(scope, inputs, tables, past, columns));
            int pairs = numLayers();
            NDList both = new NDList(outputs.subList(1, 2 * pairs + 1));
            checkShapes(both, new Shape(rows.size(), 0, columns + inputs.newTokens(), 0));
            Object[] written =
                    tables.arguments(
                            cache,
                            both,
                            columns,
                            scope.create(tokenRows(inputs)),
                            scope.create(CacheBatch.starts(counts)));
            write(scope, written, rows);
            CacheBatch.commit(cache, rows, tokens);
            NDList states = new NDList(outputs.get(0));
            states.addAll(outputs.subNDList(2 * pairs + 1));
            states.attach(owner);
            return states;
        }
    }

    private void write(NDManager scope, Object[] arguments, List<CacheSequence> rows) {
        try {
            code.run(scope, "write", arguments);
        } catch (RuntimeException | Error e) {
            int[] lengths = rows.stream().mapToInt(CacheSequence::length).toArray();
            CacheBatch.rollBack(cache, rows, lengths);
            throw e;
        }
    }

    private NDList forward(NDList inputs) {
        try {
            return model.forward(inputs);
        } catch (EngineException e) {
            throw new EngineException(
                    "The traced model failed with past keys and values "
                            + inputs.get(3).getShape()
                            + " for "
                            + numLayers()
                            + " layers. "
                            + SIZES
                            + " PyTorch says: "
                            + e.getMessage(),
                    e);
        }
    }

    private void requireRoom(long[] past, int[] counts) {
        int most = cache.geometry().maxTokens();
        for (int row = 0; row < counts.length; ++row) {
            if (past[row] + counts[row] > most) {
                throw new IllegalArgumentException(
                        "A sequence of "
                                + past[row]
                                + " tokens can not take "
                                + counts[row]
                                + " more: the cache is made for "
                                + most
                                + ". Set the option "
                                + TracedModel.MAX_LENGTH
                                + " higher, if the model allows for it.");
            }
        }
    }

    /** The graph's inputs, in floats: the past of each row at the right end of its columns. */
    private NDList inputs(
            NDManager scope, CausalInputs inputs, CacheBatch tables, long[] past, long columns) {
        NDList given = inputs.list();
        NDList read = code.run(scope, "read", tables.arguments(cache, past, columns));
        NDArray ids = given.get(0).duplicate();
        ids.attach(scope);
        NDList floats = new NDList(ids, given.get(1), mask(scope, inputs, past, columns));
        for (int i = 0; i < 3; ++i) {
            floats.get(i).setName(given.get(i).getName());
        }
        for (int i = 0; i < read.size(); ++i) {
            read.get(i).setName(given.get(3 + i).getName());
            floats.add(read.get(i));
        }
        return floats;
    }

    private static NDArray mask(NDManager scope, CausalInputs inputs, long[] past, long columns) {
        long[][] mask = new long[past.length][Math.toIntExact(columns) + inputs.newTokens()];
        for (int row = 0; row < mask.length; ++row) {
            int end = Math.toIntExact(columns);
            Arrays.fill(mask[row], end - Math.toIntExact(past[row]), end, 1);
            for (int column = 0; column < inputs.newTokens(); ++column) {
                mask[row][end + column] = inputs.isToken(row, column) ? 1 : 0;
            }
        }
        return scope.create(mask);
    }

    private void checkShapes(NDList both, Shape sizes) {
        CacheGeometry geometry = cache.geometry();
        Shape expected =
                new Shape(sizes.get(0), geometry.numKvHeads(), sizes.get(2), geometry.headDim());
        for (NDArray array : both) {
            if (!array.getShape().equals(expected)) {
                throw new IllegalArgumentException(
                        "The traced model returned keys or values "
                                + array.getShape()
                                + " where "
                                + expected
                                + " was expected. "
                                + SIZES);
            }
        }
    }

    /** The places of new tokens among all new columns. */
    private static long[] tokenRows(CausalInputs inputs) {
        long[] rows = new long[inputs.batch() * inputs.newTokens()];
        int count = 0;
        for (int row = 0; row < inputs.batch(); ++row) {
            for (int column = 0; column < inputs.newTokens(); ++column) {
                if (inputs.isToken(row, column)) {
                    rows[count++] = (long) row * inputs.newTokens() + column;
                }
            }
        }
        return Arrays.copyOf(rows, count);
    }
}
