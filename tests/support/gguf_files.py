"""Small GGUF files, written by the gguf package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy
from gguf import GGMLQuantizationType as Type

from qwen_inspect.architectures import architecture_of
from qwen_inspect.architectures.gguf import stored_form
from qwen_inspect.spec import Module, each_tensor

from .models import TINY_QWEN3

# Sides that whole blocks of 32 fill.
QWEN3: Mapping[str, Any] = {**TINY_QWEN3, "head_dim": 32}


def tree_of(config: Mapping[str, Any]) -> Module:
    architecture = architecture_of(config)
    return architecture.tree


def writer(path: Path, architecture: str, config: Mapping[str, Any], *, tokens: int = 256, **options: Any) -> Any:
    """What llama.cpp's converter writes of a configuration. Source: convert_hf_to_gguf.py, Qwen2Model.set_gguf_parameters."""
    made = gguf.GGUFWriter(path, architecture, **options)
    made.add_block_count(config["num_hidden_layers"])
    made.add_context_length(config["max_position_embeddings"])
    made.add_embedding_length(config["hidden_size"])
    made.add_feed_forward_length(config["intermediate_size"])
    made.add_head_count(config["num_attention_heads"])
    made.add_head_count_kv(config["num_key_value_heads"])
    made.add_layer_norm_rms_eps(config["rms_norm_eps"])
    made.add_rope_freq_base(config.get("rope_theta", 10_000.0))
    if "head_dim" in config:
        made.add_key_length(config["head_dim"])
        made.add_value_length(config["head_dim"])
    if "num_experts" in config:
        made.add_expert_count(config["num_experts"])
        made.add_expert_used_count(config["num_experts_per_tok"])
        made.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        made.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    made.add_token_list([f"token {index}" for index in range(tokens)])
    made.add_token_merges([f"a{index} b{index}" for index in range(tokens)])
    made.add_token_types([1] * tokens)
    made.add_chat_template("{{ messages }}" * min(tokens, 5_000))
    return made


def finish(made: Any) -> None:
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


def write_model(
    path: Path, architecture: str, config: Mapping[str, Any], kind: Type = Type.Q4_0, **options: Any
) -> Path:
    """A model with random weights really quantised: matrices in `kind`, the rest in float32, as the converter does."""
    made = writer(path, architecture, config, **options)
    random = numpy.random.default_rng(0)
    for tensor in each_tensor(tree_of(config)):
        for part in stored_form(tensor):
            values = random.standard_normal(part.shape).astype(numpy.float32)
            if len(part.shape) > 1 and "gate_inp" not in part.name:
                made.add_tensor(part.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                made.add_tensor(part.name, values)
    finish(made)
    return path


def on_a_card(tensor: gguf.ReaderTensor) -> int:
    """Bytes of a tensor with CUDA: the last row of a quantised one is filled up to 512 numbers, and the next begins at a multiple
    of 128 bytes. Source: ggml-cuda.cu, ggml_backend_cuda_buffer_type_get_alloc_size and _get_alignment.
    """
    numbers, size_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    missing = -int(tensor.shape[0]) % 512 // numbers * size_bytes if numbers > 1 else 0
    return -(-(int(tensor.n_bytes) + missing) // 128) * 128
