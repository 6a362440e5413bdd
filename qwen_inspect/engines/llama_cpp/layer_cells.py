"""The cells of one layer, from a model's design alone.

Source: llama.cpp b11549, src/llama-kv-cache.cpp, llama-memory-recurrent.cpp
"""

from __future__ import annotations

from collections.abc import Mapping

from ...checkpoint import DType
from ...errors import UnsupportedError
from ...results.attention import (
    AnyLayerAttention,
    EncoderLayerAttention,
    LayerAttention,
    LinearLayerAttention,
    OtherLayerAttention,
)
from ...structure.kv_cache import CacheFormat

CACHE_NAMES: Mapping[str, str] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
CELL_FORMATS = ("float32", "bfloat16", "float16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
CELLS_MULTIPLE = 256


def padded(tokens: int) -> int:
    return -(-tokens // CELLS_MULTIPLE) * CELLS_MULTIPLE


def llama_cpp_layer_bytes(
    layer: AnyLayerAttention, keys: CacheFormat, values: CacheFormat, *, tokens: int, sequences: int = 1
) -> int:
    """Bytes that one layer reserves for `sequences` sequences of `tokens` tokens, filled or not.

    K and V: (cells, kv_heads, head_dim) each. Linear attention: the convolution's last conv_kernel - 1 inputs, and the recurrent
    state, both float32. Raises UnsupportedError for windows, whose cells depend on the micro-batch, and for formats it lacks.
    Source: llama_kv_cache; llama_memory_recurrent with llama_hparams.n_embd_r and n_embd_s.
    """
    check_formats(keys, values)
    match layer:
        case LayerAttention(window_tokens=None):
            elements = layer.kv_heads * layer.head_dim
            return sequences * padded(tokens) * (keys.size_bytes(elements) + values.size_bytes(elements))
        case LayerAttention():
            raise UnsupportedError("cache_engine_window", engine="llama.cpp")
        case LinearLayerAttention():
            values_width = layer.value_heads * layer.value_head_dim
            channels = 2 * layer.key_heads * layer.key_head_dim + values_width
            elements = (layer.conv_kernel - 1) * channels + layer.key_head_dim * values_width
            return sequences * elements * DType.F32.bits // 8
        case OtherLayerAttention() | EncoderLayerAttention():
            raise UnsupportedError("cache_engine_other", engine="llama.cpp")


def check_formats(*formats: CacheFormat) -> None:
    for cache_format in formats:
        if cache_format.name not in CELL_FORMATS:
            raise UnsupportedError("llama_cpp_cache_format", found=cache_format.name, known=", ".join(CELL_FORMATS))
