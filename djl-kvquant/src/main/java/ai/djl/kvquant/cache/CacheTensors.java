/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import ai.djl.kvquant.torch.Operators;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.util.List;

/** The memory of a cache: packed parameters of each layer, its pages and its exact pages. */
final class CacheTensors implements AutoCloseable {

    private final NDManager manager;
    private final Operators operators;
    private final CacheGeometry geometry;
    private final NDList params = new NDList();
    private final NDList pages = new NDList();
    private final NDList exact = new NDList();
    private final NDArray rope;
    private final long[] pageBytes;
    private final long[] exactPageBytes;

    /** Packs the parameters, which tell how many bytes a page takes; there are no pages yet. */
    CacheTensors(
            NDManager parent,
            Operators operators,
            CacheGeometry geometry,
            List<LayerFormat> layers) {
        this.operators = operators;
        this.geometry = geometry;
        pageBytes = new long[layers.size()];
        exactPageBytes = new long[layers.size()];
        manager = parent.newSubManager();
        try {
            rope = RopeTable.create(manager, geometry);
            for (int i = 0; i < layers.size(); ++i) {
                params.add(pack(manager, layers.get(i)));
                operators.hold(manager, params.get(i));
                long[] sizes = operators.layout(params.get(i));
                pageBytes[i] = sizes[0];
                exactPageBytes[i] = layers.get(i).hasExactPages() ? sizes[1] : 0;
            }
        } catch (RuntimeException | Error e) {
            manager.close();
            throw e;
        }
    }

    /** Makes the pages. */
    void allocate(int numPages, int numExactPages) {
        for (int i = 0; i < params.size(); ++i) {
            pages.add(pool(numPages, pageBytes[i]));
            exact.add(pool(Math.max(1, numExactPages), Math.max(1, exactPageBytes[i])));
        }
    }

    private NDArray pool(long rows, long bytes) {
        return manager.create(new Shape(rows, bytes), DataType.UINT8);
    }

    /** Parameters of a layer as the operators read them. */
    NDArray pack(NDManager owner, LayerFormat layer) {
        return operators.hostBytes(owner, layer.pack(geometry));
    }

    /** Bytes of a page of each layer. */
    long[] pageBytes() {
        return pageBytes;
    }

    /** Bytes of an exact page of each layer. */
    long[] exactPageBytes() {
        return exactPageBytes;
    }

    /** Pages, exact pages and packed parameters, one tensor per layer each. */
    List<NDList> pools() {
        return List.of(pages, exact, params);
    }

    NDArray rope() {
        return rope;
    }

    /** Copies pages, or exact pages, in every layer. */
    void copyPages(boolean exactPages, IntArray sources, IntArray targets) {
        if (sources.size() > 0) {
            NDList pools = exactPages ? exact : pages;
            operators.copyRows(pools, sources.toArray(), targets.toArray());
        }
    }

    /** Packed parameters of the layers for a sequence. */
    NDList params(CacheSequence sequence) {
        return sequence.own == null ? params : sequence.own.layers;
    }

    SequenceParams newParams() {
        return new SequenceParams(manager, operators, params);
    }

    NDManager newManager() {
        return manager.newSubManager();
    }

    @Override
    public void close() {
        manager.close();
    }
}
