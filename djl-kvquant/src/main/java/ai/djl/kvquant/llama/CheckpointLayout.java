/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.llama;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.regex.Pattern;

/** The tensors that a model of a given geometry consists of, named as HuggingFace names them. */
final class CheckpointLayout {

    static final String EMBEDDING = "model.embed_tokens.weight";
    static final String OUTPUT = "lm_head.weight";

    /** Frequencies that old checkpoints store and that everybody computes anew. */
    private static final Pattern IGNORED = Pattern.compile("model\\..*rotary_emb\\.inv_freq");

    private final Map<String, long[]> shapes = new LinkedHashMap<>();

    private CheckpointLayout() {}

    /**
     * Derives the tensors from the geometry.
     *
     * @param config the geometry
     * @return the shapes by name in the order of computation; with tied embeddings without {@link
     *     #OUTPUT}
     */
    static Map<String, long[]> of(LlamaConfig config) {
        CheckpointLayout layout = new CheckpointLayout();
        long hidden = config.hiddenSize();
        layout.shapes.put(EMBEDDING, new long[] {config.vocabSize(), hidden});
        for (int i = 0; i < config.numLayers(); i++) {
            layout.addLayer("model.layers." + i + ".", config);
        }
        layout.shapes.put("model.norm.weight", new long[] {hidden});
        if (!config.tieWordEmbeddings()) {
            layout.shapes.put(OUTPUT, new long[] {config.vocabSize(), hidden});
        }
        return Collections.unmodifiableMap(layout.shapes);
    }

    static boolean isIgnored(String name) {
        return IGNORED.matcher(name).matches();
    }

    private void addLayer(String layer, LlamaConfig config) {
        long hidden = config.hiddenSize();
        long inner = config.intermediateSize();
        long queries = (long) config.numHeads() * config.headDim();
        long keys = (long) config.numKvHeads() * config.headDim();
        shapes.put(layer + "input_layernorm.weight", new long[] {hidden});
        boolean bias = config.attentionBias();
        addLinear(layer + "self_attn.q_proj", queries, hidden, bias);
        addLinear(layer + "self_attn.k_proj", keys, hidden, bias);
        addLinear(layer + "self_attn.v_proj", keys, hidden, bias);
        addLinear(layer + "self_attn.o_proj", hidden, queries, bias);
        shapes.put(layer + "post_attention_layernorm.weight", new long[] {hidden});
        addLinear(layer + "mlp.gate_proj", inner, hidden, config.mlpBias());
        addLinear(layer + "mlp.up_proj", inner, hidden, config.mlpBias());
        addLinear(layer + "mlp.down_proj", hidden, inner, config.mlpBias());
    }

    private void addLinear(String name, long outputs, long inputs, boolean bias) {
        shapes.put(name + ".weight", new long[] {outputs, inputs});
        if (bias) {
            shapes.put(name + ".bias", new long[] {outputs});
        }
    }
}
