# Copyright 2026 The djl-kvquant authors.
# Licensed under the Apache License, Version 2.0. See LICENSE.
"""Small seeded checkpoints, one for each thing that a LLaMA configuration may say."""

import json
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save_file

STD = 0.2  # large: continuations are varied, and the best token is well ahead of the second
FILE_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class Spec:
    """A checkpoint to make.

    config holds what differs from BASE; DELETED removes a key, as older checkpoints lack some.
    """

    about: str
    config: dict
    prompt: int = 40
    shards: int = 1
    extra_inv_freq: bool = False


BASE = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 256,
}
DELETED = object()

SPECS = {
    "mha": Spec(
        "as Llama 1 was written: no kv heads, no head_dim, no rope_theta, stored inv_freq",
        {
            "hidden_size": 128,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "num_key_value_heads": DELETED,
            "head_dim": DELETED,
            "rope_theta": DELETED,
            "attention_bias": DELETED,
            "mlp_bias": DELETED,
            "rms_norm_eps": 1e-06,
        },
        extra_inv_freq=True,
    ),
    "gqa4": Spec(
        "four query heads a kv head", {"num_attention_heads": 8, "num_key_value_heads": 2}
    ),
    "gqa3-tied": Spec(
        "the default model's heads; tied embeddings",
        {
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "hidden_size": 72,
            "tie_word_embeddings": True,
        },
    ),
    "mqa-128": Spec("one kv head; head_dim 128", {"num_attention_heads": 4, "head_dim": 128}),
    "gqa8-128": Spec(
        "eight query heads a kv head; head_dim 128",
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "hidden_size": 40,
        },
    ),
    "attention-bias": Spec(
        "biases on q, k, v and o",
        {"attention_bias": True, "num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "attention-bias-128": Spec(
        "biases on q, k, v and o; head_dim 128",
        {"attention_bias": True, "head_dim": 128, "num_key_value_heads": 2},
    ),
    "mlp-bias": Spec("biases on gate, up and down", {"mlp_bias": True}),
    "head-dim": Spec(
        "heads x head_dim differs from the hidden size",
        {"hidden_size": 96},
    ),
    "rope-linear": Spec(
        "positions divided by 4, beyond the original length",
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "max_position_embeddings": 64},
        prompt=110,
    ),
    "rope-llama3": Spec(
        "Llama 3.1's frequencies, beyond the original length",
        {
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
        },
        prompt=120,
    ),
    "rope-yarn": Spec(
        "YaRN with default parameters, beyond the original length; head_dim 128",
        {
            "rope_scaling": {
                "factor": 8.0,
                "original_max_position_embeddings": 32,
                "type": "yarn",
            },
            "head_dim": 128,
            "max_position_embeddings": 256,
        },
        prompt=105,
    ),
    "rope-yarn-options": Spec(
        "YaRN with every parameter given, beyond the original length",
        {
            "rope_scaling": {
                "attention_factor": 0.9,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_type": "yarn",
            },
            "max_position_embeddings": 256,
        },
        prompt=101,
    ),
    "rope-dynamic": Spec(
        "dynamic scaling, below the original length, where it changes nothing",
        {
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
            "max_position_embeddings": 128,
        },
    ),
    "rope-parameters": Spec(
        "the layout of transformers 5: rope_parameters, dtype",
        {
            "rope_scaling": DELETED,
            "rope_theta": DELETED,
            "torch_dtype": DELETED,
            "dtype": "float16",
            "rope_parameters": {
                "factor": 4.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 32,
                "rope_theta": 20000.0,
                "rope_type": "llama3",
            },
        },
        prompt=100,
    ),
    "bf16": Spec(
        "a BF16 file; three layers",
        {
            "torch_dtype": "bfloat16",
            "num_hidden_layers": 3,
        },
    ),
    "f32": Spec(
        "an F32 file",
        {"torch_dtype": "float32"},
    ),
    "sharded": Spec("three files and an index; tied", {"tie_word_embeddings": True}, shards=3),
    "mistral": Spec(
        "Mistral without a sliding window",
        {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "attention_bias": DELETED,
            "mlp_bias": DELETED,
            "pretraining_tp": DELETED,
            "rope_scaling": DELETED,
            "sliding_window": None,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
}


def config_of(spec):
    merged = {**BASE, **spec.config}
    return {key: value for key, value in merged.items() if value is not DELETED}


def _shapes(config):
    """Yields (name, shape) of every tensor, in the order in which random numbers are drawn."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    query, key = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    linear = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        for name, shape in linear.items():
            yield f"{prefix}{name}.weight", shape
            part = "attention_bias" if name.startswith("self_attn") else "mlp_bias"
            if config.get(part, False):
                yield f"{prefix}{name}.bias", shape[:1]
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def _tensors(spec, config, random):
    dtype = FILE_TYPES[config.get("torch_dtype") or config["dtype"]]
    tensors = {}
    for name, shape in _shapes(config):
        values = random.standard_normal(shape) * STD + (1.0 if "norm" in name else 0.0)
        tensors[name] = torch.from_numpy(values).to(torch.float32).to(dtype)
    if spec.extra_inv_freq:
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        inv_freq = 1.0 / 10000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim)
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            tensors[name] = inv_freq.clone()
    return tensors


def _save(tensors, directory, shards):
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata)
        return
    weight_map = {}
    names = sorted(tensors)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, directory / file, metadata)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / "model.safetensors.index.json", index)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="ascii")


def write_checkpoint(spec, seed, directory):
    """Writes a checkpoint and returns a prompt for it; both follow from the seed."""
    config = config_of(spec)
    random = np.random.Generator(np.random.PCG64(seed))
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    _save(_tensors(spec, config, random), directory, spec.shards)
    return random.integers(3, config["vocab_size"], spec.prompt).tolist()
