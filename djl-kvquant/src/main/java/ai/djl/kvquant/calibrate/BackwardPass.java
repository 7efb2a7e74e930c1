/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import ai.djl.kvquant.llama.LlamaGradients;
import ai.djl.kvquant.llama.LlamaLayers;
import ai.djl.kvquant.llama.LlamaModel;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * The layers of a model from the last to the first, with the gradients of the loss of some texts.
 *
 * <p>Layers run again from their inputs. Where the inputs of all layers would take too much memory,
 * only about the square root of them are kept, and those between are computed once more.
 */
final class BackwardPass implements AutoCloseable {

    /** Inputs of layers may take so much. */
    private static final long KEPT_BYTES = 1L << 30;

    private final LlamaModel model;
    private final List<int[]> windows;
    private final LlamaLayers layers;
    private final LlamaGradients gradients;
    private final NDManager manager;
    private final int stride;

    /** By layer, of each window. */
    private final Map<Integer, List<NDArray>> inputs = new HashMap<>();

    /** Of each window, with respect to the output of the layer that is next. */
    private List<NDArray> outer;

    private int done;

    /**
     * Prepares a pass.
     *
     * @param model the model
     * @param windows token ids of the texts
     * @param stride every stride-th layer's input is kept
     */
    BackwardPass(LlamaModel model, List<int[]> windows, int stride) {
        this.model = model;
        this.windows = windows;
        this.stride = stride;
        gradients = new LlamaGradients(model);
        int longest = windows.stream().mapToInt(window -> window.length).max().orElseThrow();
        layers = new LlamaLayers(model, longest);
        manager = layers.newManager();
    }

    /** A manager for results; the caller closes it. */
    NDManager newManager() {
        return layers.newManager();
    }

    /** The stride that keeps memory bounded. */
    static int stride(LlamaModel model, List<int[]> windows) {
        long tokens = windows.stream().mapToLong(window -> window.length).sum();
        int count = model.geometry().numLayers();
        boolean fits = tokens * Float.BYTES * model.config().hiddenSize() * count <= KEPT_BYTES;
        return fits ? 1 : (int) Math.ceil(Math.sqrt(count));
    }

    /**
     * Runs all layers forward and takes the gradients of the losses.
     *
     * @param progress called after each layer
     */
    void start(Runnable progress) {
        List<NDArray> hidden = new ArrayList<>();
        windows.forEach(window -> hidden.add(layers.embed(manager, window)));
        inputs.put(0, hidden);
        int count = model.geometry().numLayers();
        for (int layer = 0; layer < count; ++layer) {
            forward(layer);
            if (layer % stride != 0) {
                close(layer);
            }
            progress.run();
        }
        outer = new ArrayList<>();
        for (int i = 0; i < windows.size(); ++i) {
            outer.add(gradients.ofLoss(manager, inputs.get(count).get(i), windows.get(i)));
        }
        close(count);
        done = count;
    }

    /**
     * Goes back by one layer.
     *
     * @param scope the manager that the results are attached to, all but the inputs' gradients
     * @return of each window
     */
    List<LlamaGradients.Output> back(NDManager scope) {
        int layer = --done;
        for (int before = layer / stride * stride; before < layer; ++before) {
            if (!inputs.containsKey(before + 1)) {
                forward(before);
            }
        }
        List<LlamaGradients.Output> outputs = new ArrayList<>();
        for (int i = 0; i < windows.size(); ++i) {
            NDArray input = inputs.get(layer).get(i);
            LlamaGradients.Output output = gradients.ofLayer(scope, layer, input, outer.get(i));
            output.input().attach(manager);
            outer.get(i).close();
            outer.set(i, output.input());
            outputs.add(output);
        }
        close(layer);
        return outputs;
    }

    /** Computes the inputs of the layer that follows. */
    private void forward(int layer) {
        List<NDArray> next = new ArrayList<>();
        for (NDArray input : inputs.get(layer)) {
            LlamaLayers.Output output = layers.run(manager, layer, input);
            output.qkv().close();
            next.add(output.hidden());
        }
        inputs.put(layer + 1, next);
    }

    private void close(int layer) {
        inputs.remove(layer).forEach(NDArray::close);
    }

    /** Frees inputs and gradients. */
    @Override
    public void close() {
        manager.close();
        layers.close();
    }
}
