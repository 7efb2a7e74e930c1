/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;

/**
 * Options that can not be: the values, and what the message must say. The model has 2 layers with
 * one kv head of 64 channels.
 *
 * @param options the options, by name
 * @param fragments parts of the message
 */
record BadOptions(Map<String, String> options, List<String> fragments) {

    private static final String KEYS_ONLY = "has an effect only when keys are quantized";
    private static final String BOTH = "has an effect only when keys or values are quantized";
    private static final String QUANTIZED = "Remove it or choose a quantized kv_cache_dtype";
    private static final String NAMES = "choose one of auto, fp16, int8, int4, int3, int2, latent4";

    /** Options as {@code name=value}, separated by blanks. */
    private static BadOptions row(String options, String... fragments) {
        Map<String, String> map = new LinkedHashMap<>();
        for (String option : options.split(" ")) {
            String[] pair = option.split("=", 2);
            map.put(pair[0], pair[1]);
        }
        return new BadOptions(map, List.of(fragments));
    }

    /** A row on top of kv_cache_dtype=rotatekv4. */
    private static BadOptions quantized(String options, String... fragments) {
        return row("kv_cache_dtype=rotatekv4 " + options, fragments);
    }

    static Stream<BadOptions> table() {
        return Stream.of(names(), dtypes(), withoutEffect(), experts(), sizes()).flatMap(s -> s);
    }

    private static Stream<BadOptions> names() {
        return Stream.of(
                row("kv_cache_type=rotatekv4", "Unknown option kv_cache_type", "kv_cache_dtype"),
                row("kv_window=64", "Unknown option kv_window", "kv_recent_tokens"),
                row("KV-Window=64", "Unknown option KV-Window", "kv_recent_tokens"),
                row("kv-cache-dtype=int2", "Unknown option kv-cache-dtype; did you mean kv_cache"),
                row("kvCacheDtype=int2", "option kvCacheDtype; did you mean kv_cache_dtype?"),
                row("cache_dtype=int2", "option cache_dtype; did you mean kv_cache_dtype?"),
                row("max-batch-size=2", "option max-batch-size; did you mean max_batch_size?"),
                row("keepHandles=true", "option keepHandles; did you mean keep_handles?"),
                row("max_batchsize=2", "option max_batchsize; did you mean max_batch_size?"),
                row("promptlogits=all", "option promptlogits; did you mean prompt_logits?"),
                row("max-running-requests=2", "did you mean max_running_requests?"),
                row("dtype=int8", "dtype 'int8' is not supported", "auto, fp32, bf16, fp16"),
                row("dtype=float32", "dtype 'float32' is not supported", "choose one of"));
    }

    private static Stream<BadOptions> dtypes() {
        return Stream.of(
                row("kv_cache_dtype=q4_0", "kv_cache_dtype 'q4_0' is not supported", NAMES),
                row("kv_cache_dtype=rotatekv5", "'rotatekv5' is not supported", NAMES),
                row("kv_cache_dtype=RotateKV4", "'RotateKV4' is not supported", NAMES),
                row("kv_cache_dtype=rotatekv4/", "'rotatekv4/' is not supported", "a pair K/V"),
                row("kv_cache_dtype=rotatekv4/x", "'rotatekv4/x' is not supported", "a pair K/V"),
                row("kv_cache_dtype=int4/svdq2.25", "for keys only", "svdq"),
                row("kv_cache_dtype=svdq2", "'svdq2' is not supported", NAMES),
                row("kv_cache_dtype=fp16,fp16,fp16", "'fp16,fp16,fp16' is not", "a pair K/V"));
    }

    private static Stream<BadOptions> withoutEffect() {
        return Stream.of(
                row("kv_recent_tokens=64", "kv_recent_tokens " + KEYS_ONLY, "is auto", QUANTIZED),
                row("kv_cache_dtype=fp16 kv_sink_tokens=4", KEYS_ONLY, "is fp16", QUANTIZED),
                row("kv_cache_dtype=auto/rotatekv4 kv_recent_tokens=64", "is auto/rotatekv4"),
                row("kv_rollback_tokens=8", "kv_rollback_tokens " + KEYS_ONLY, QUANTIZED),
                row("kv_sparse_tokens=64", "kv_sparse_tokens " + KEYS_ONLY, "is auto", QUANTIZED),
                row("kv_group_size=32", "kv_group_size " + BOTH, QUANTIZED),
                row("kv_clip=0.9", "kv_clip " + BOTH, "is auto", QUANTIZED),
                row("kv_skip_layers=0", "kv_skip_layers " + BOTH, QUANTIZED),
                row("kv_cache_dtype=fp16 kv_float_zero=true", "kv_float_zero " + BOTH),
                row("kv_cache_dtype=int2 kv_clip=0.9", "kv_clip has an effect only when keys or"),
                row("kv_cache_dtype=int2 kv_order=layer", "kv_order has an effect only when keys"),
                row("kv_rotation=none", "keys are stored by rotatekv; kv_cache_dtype is auto"),
                quantized(
                        "kv_rotation=none kv_order=group",
                        "kv_order is group, but kv_rotation is none",
                        "Remove kv_order or set kv_rotation"));
    }

    private static Stream<BadOptions> experts() {
        String groups = "allowed: multiples of 16 that divide the 64 key channels";
        String clip = "allowed: a number above 0 and at most 1";
        String layers = "allowed: layer numbers 0 to 1, separated by commas";
        String sinks = "allowed: massive (the prompt's massive activations) or the number of first";
        return Stream.of(
                quantized("kv_group_size=24", "kv_group_size is '24'", groups),
                quantized("kv_group_size=128", "kv_group_size is '128'", groups),
                quantized("kv_group_size=0", "kv_group_size is '0'", groups),
                quantized("kv_group_size=big", "kv_group_size is 'big'", groups),
                quantized("kv_clip=0", "kv_clip is '0'", clip),
                quantized("kv_clip=1.5", "kv_clip is '1.5'", clip),
                quantized("kv_clip=NaN", "kv_clip is 'NaN'", clip),
                quantized("kv_sink_tokens=-1", "kv_sink_tokens is '-1'", sinks),
                quantized("kv_sink_tokens=first", "kv_sink_tokens is 'first'", sinks),
                quantized("kv_sink_tokens=1025", "kv_sink_tokens is '1025'", "0 to 1024"),
                quantized("kv_recent_tokens=-5", "kv_recent_tokens is '-5'", "whole number from 0"),
                quantized("kv_recent_tokens=12.5", "kv_recent_tokens is '12.5'", "whole number"),
                quantized("kv_rollback_tokens=x", "kv_rollback_tokens is 'x'", "whole number"),
                quantized("kv_skip_layers=0,2", "kv_skip_layers is '0,2'", layers),
                quantized("kv_skip_layers=0-1", "kv_skip_layers is '0-1'", layers),
                quantized("kv_skip_layers=-1", "kv_skip_layers is '-1'", layers),
                quantized("kv_order=sorted", "kv_order is 'sorted'", "natural, group, layer"),
                quantized("kv_rotation=true", "kv_rotation is 'true'", "none, post_rope, pre_rope"),
                quantized("kv_value_rotation=0", "kv_value_rotation is '0'", "true, false"),
                quantized("kv_float_zero=yes", "kv_float_zero is 'yes'", "allowed: true, false"));
    }

    private static Stream<BadOptions> sizes() {
        String memory = "allowed: bytes, or a number with k, m or g, for example 2g";
        return Stream.of(
                row(
                        "kv_cache_tokens=1000 kv_cache_memory=1g",
                        "kv_cache_tokens and kv_cache_memory are both set; set one of them"),
                row("kv_cache_tokens=0", "kv_cache_tokens is '0'", "a whole number from 1"),
                row("kv_cache_tokens=-1", "kv_cache_tokens is '-1'", "a whole number from 1"),
                row("kv_cache_tokens=1e6", "kv_cache_tokens is '1e6'", "a whole number from 1"),
                row(
                        "kv_cache_tokens=1073741824",
                        "A KV cache of 1073741824 tokens takes",
                        "MiB, more than the machine's",
                        "Set kv_cache_tokens or kv_cache_memory lower"),
                row("kv_cache_memory=0", "kv_cache_memory is '0'", memory),
                row("kv_cache_memory=lots", "kv_cache_memory is 'lots'", memory),
                row("kv_cache_memory=-1g", "kv_cache_memory is '-1g'", memory),
                row("kv_cache_memory=999999999999999t", "is '999999999999999t'", memory),
                row("kv_cache_memory=900t", "more than the machine's", "kv_cache_memory lower"),
                row(
                        "kv_cache_memory=1k",
                        "no room for a page: 64 tokens take",
                        "kv_cache_memory higher"),
                row("max_batch_size=0", "max_batch_size is '0'", "a whole number from 1 to 65536"),
                row("max_batch_size=four", "max_batch_size is 'four'", "a whole number from 1"),
                quantized(
                        "kv_recent_tokens=1048576 max_batch_size=65536",
                        "no room for a page",
                        "or max_batch_size or kv_recent_tokens lower"),
                quantized(
                        "kv_recent_tokens=1048576 max_batch_size=65536 kv_cache_tokens=64",
                        "more than the machine's",
                        "(or max_batch_size or kv_recent_tokens)"));
    }

    @Override
    public String toString() {
        return options.toString();
    }
}
