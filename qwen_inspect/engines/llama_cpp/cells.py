"""llama.cpp's KV cache: cells for the whole context of every sequence, and recurrent states.

Source: llama.cpp 0c1e57098, src/llama-kv-cache.cpp, llama-memory-recurrent.cpp, llama-context.cpp
"""

from __future__ import annotations

from ...architectures.gguf_hparams import GgufHyperparameters
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

CELL_FORMATS = ("float32", "bfloat16", "float16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
CELLS_MULTIPLE = 256
MICRO_BATCH = 512  # -ub


def padded_cells(tokens: int) -> int:
    """Cells that llama.cpp allocates for a sequence's context. Source: llama_context, n_ctx_seq."""
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
            return sequences * padded_cells(tokens) * (keys.size_bytes(elements) + values.size_bytes(elements))
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


def cells_bytes(
    model: GgufHyperparameters, layer: int, keys: CacheFormat, values: CacheFormat, *, tokens: int, sequences: int
) -> int:
    """Bytes of a layer's cells for K and V, and for the keys of its index; a window's cells hold a micro-batch too.

    Source: llama_kv_cache; llama_kv_cache_iswa, size_swa; llama_kv_cache_dsa.
    """
    index_keys, index_values = model.index_cells(layer)
    cells = padded_cells(tokens)
    size_bytes = cells * (keys.size_bytes(index_keys) + values.size_bytes(index_values))
    if model.attends(layer):
        if model.windowed[layer]:
            cells = padded_cells(min(cells, model.window + MICRO_BATCH))
        size_bytes += cells * (keys.size_bytes(model.keys(layer)) + values.size_bytes(model.values(layer)))
    return sequences * size_bytes


def states_bytes(model: GgufHyperparameters, layer: int, *, sequences: int) -> int:
    """Bytes of a layer's recurrent states, in float32. Source: llama_memory_recurrent."""
    return sequences * (sum(model.state(layer)) + model.history(layer)) * DType.F32.bits // 8
