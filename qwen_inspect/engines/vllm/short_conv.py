"""LFM2 in vLLM: layers of a short convolution, whose state is its last columns, beside layers with attention.

Source: vLLM 0.19.0, model_executor/layers/mamba/short_conv.py, mamba_utils.py (short_conv_state_shape), models/lfm2.py.
"""

from __future__ import annotations

from ...errors import UnsupportedError
from ...results.attention import LayerAttention
from ...results.model import Report
from ...structure.kv_cache import CacheFormat
from ...values import replace
from .blocks import BLOCK_FORMATS, BLOCK_TOKENS, BlockPool, hybrid_pool, softmax_kind, text_part

TYPES = ("lfm2", "lfm2_moe")
# Its modules by the names that other classes have for them.
NAMES = {"conv": "conv1d", "in_proj": "in_proj_z", "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def has_short_convolutions(report: Report) -> bool:
    return text_part(report.config or {}).get("model_type") in TYPES


def convolution_columns(report: Report) -> int:
    """Numbers of a token in the profile run: the projection, two products, and the output."""
    return 6 * report.spec.hidden_size


def convolution_pool(
    report: Report, layers: range, cache_format: CacheFormat, *, ranks: int, prefix_caching: bool
) -> BlockPool:
    """The blocks of `layers` on one rank. A state is (kernel - 1, channels) in the model's dtype."""
    if cache_format.name not in BLOCK_FORMATS:
        raise UnsupportedError("vllm_cache_format", found=cache_format.name, known=", ".join(BLOCK_FORMATS))
    config, hidden = report.config or {}, report.spec.hidden_size
    kernel = config.get("conv_L_cache", 3)
    if type(kernel) is not int or not 1 < kernel <= 1 << 16:
        raise UnsupportedError("config_key_unsupported", key="conv_L_cache", found=str(kernel)[:60])
    if hidden % ranks:
        raise UnsupportedError("vllm_not_divisible", name="conv", size=hidden, ranks=ranks)
    attention = [
        layer for layer in report.attention.layers if isinstance(layer, LayerAttention) and layer.index in layers
    ]
    kinds = [softmax_kind(layer, cache_format, ranks, BLOCK_TOKENS) for layer in attention]
    state_bytes = (kernel - 1) * hidden // ranks * report.spec.dtype.bits // 8
    pool = hybrid_pool(kinds, [state_bytes] * (len(layers) - len(attention)))
    return replace(pool, state_blocks=2 if prefix_caching else 1)
