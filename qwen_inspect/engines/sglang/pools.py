"""SGLang's pools on one rank: tokens of layers that keep them all, tokens of layers with windows, and slots of states.

Source: SGLang 0.5.23, srt/model_executor/pool_configurator.py (DefaultPoolConfigurator, HybridSWAPoolConfigurator),
srt/mem_cache/kv_cache_configurator.py (_handle_max_mamba_cache, _calculate_mamba_ratio), srt/configs/mamba_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...checkpoint import DType
from ...errors import UnsupportedError
from ...results.attention import LayerAttention, LinearLayerAttention
from ...results.model import Report
from ...results.serving import SglangOptions
from ...structure.kv_cache import CacheFormat
from ...typed import Any
from ...values import dataclass
from ..vllm.blocks import INDEXED_TYPES, kv_heads_per_rank, latent_width, text_part
from ..vllm.mamba import mamba_sizes, softmax_layers

# Classes whose windows have a pool of their own; in all others each layer keeps every token. Source: is_hybrid_swa_model, and
# disable_hybrid_swa_memory of arg_groups/model_overrides.
WINDOWED = ("GptOssForCausalLM", "Llama4ForConditionalGeneration")
UNKNOWN_WINDOWS = ("gemma3n", "gemma4")  # layers that share keys and values, or have other heads
STATE_DTYPES = {"float32": DType.F32, "bfloat16": DType.BF16, "float16": DType.F16}
SLOTS = 5  # of a running sequence: 3, and 2 for the next states while steps overlap; 1 without a radix cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Bytes of a token in layers that keep all (cell_bytes), in those with a window (window_bytes), and of a sequence's states.

    window_tokens: of the windows. options: as typed.
    """

    cell_bytes: int
    window_bytes: int
    window_tokens: int
    state_bytes: int
    options: SglangOptions

    @property
    def token_bytes(self) -> float:
        """Of a token of max_total_num_tokens; the pool of windows holds a share of the tokens."""
        return self.cell_bytes + self.options.window_share * self.window_bytes

    @property
    def sequence_slots(self) -> int:
        return SLOTS if self.options.radix else 1

    def slots(self, rest_bytes: int) -> int:
        """max_mamba_cache_size: as typed, or what a share of the rest holds, less the pool's padding slot."""
        if not self.state_bytes:
            return 0
        if self.options.state_slots is not None:
            return self.options.state_slots
        if not self.options.radix and self.options.running is not None:
            return self.options.running
        share = self.options.state_share
        return max(0, int((rest_bytes * share / (1 + share) - self.state_bytes) // self.state_bytes))

    def tokens(self, rest_bytes: int) -> int:
        """max_total_num_tokens in `rest_bytes`, in whole pages."""
        states = (self.slots(rest_bytes) + 1) * self.state_bytes if self.state_bytes else 0
        tokens = int(max(0, rest_bytes - states) // self.token_bytes) if self.token_bytes else 0
        if self.options.total_tokens is not None:
            tokens = min(tokens, self.options.total_tokens)
        return tokens // self.options.page_tokens * self.options.page_tokens

    def rest_bytes(self, batch: int, context_tokens: int) -> int:
        """Bytes for all pools with which `batch` sequences of `context_tokens` tokens fit into each."""
        tokens = batch * context_tokens
        if self.window_bytes:
            held = batch * min(context_tokens, self.window_tokens)
            tokens = max(tokens, int(held / self.options.window_share) + 1)
        pages = -(-tokens // self.options.page_tokens) * self.options.page_tokens
        cache = int(pages * self.token_bytes) + 1
        if not self.state_bytes:
            return cache
        if self.options.state_slots is not None or (not self.options.radix and self.options.running is not None):
            return cache + (self.slots(0) + 1) * self.state_bytes
        share = self.options.state_share
        states = (batch * self.sequence_slots + 2) * self.state_bytes
        return max(int(cache * (1 + share)) + self.state_bytes, int(states * (1 + share) / share) + 1)


def pools_of(report: Report, cache_format: CacheFormat, ranks: int, options: SglangOptions) -> Pools:
    """Raises UnsupportedError for layers whose pools are not modelled."""
    config, text = report.config or {}, text_part(report.config or {})
    if (width := latent_width(text)) is not None:
        if text.get("model_type") in INDEXED_TYPES:
            raise UnsupportedError("cache_engine_other", engine="SGLang")
        cell_bytes = len(report.attention.layers) * cache_format.size_bytes(width)
        return Pools(cell_bytes=cell_bytes, window_bytes=0, window_tokens=0, state_bytes=0, options=options)
    if any(str(text.get("model_type")).startswith(kind) for kind in UNKNOWN_WINDOWS):
        raise UnsupportedError("cache_engine_other", engine="SGLang")
    softmax, state_bytes = softmax_layers(report), _state_bytes(report, config, ranks)
    if (not state_bytes and len(softmax) < len(report.attention.layers)) or not softmax:
        raise UnsupportedError("cache_engine_other", engine="SGLang")
    windowed = report.spec.class_name in WINDOWED

    def size_bytes(layer: LayerAttention) -> int:
        return 2 * cache_format.size_bytes(kv_heads_per_rank(layer.kv_heads, ranks) * layer.head_dim)

    in_windows = [layer for layer in softmax if windowed and layer.window_tokens]
    return Pools(
        cell_bytes=sum(map(size_bytes, softmax)) - sum(map(size_bytes, in_windows)),
        window_bytes=sum(map(size_bytes, in_windows)),
        window_tokens=max((layer.window_tokens or 0 for layer in in_windows), default=0),
        state_bytes=state_bytes,
        options=options,
    )


def _state_bytes(report: Report, config: Mapping[str, Any], ranks: int) -> int:
    """A rank's share of a sequence's states of all layers: convolutions in bfloat16, the recurrent part in float32 if the
    configuration has no mamba_ssm_dtype.
    """
    text = text_part(config)
    named = text.get("mamba_ssm_dtype") or "float32"
    dtypes = DType.BF16, STATE_DTYPES.get(str(named), DType.F32)
    if (mamba := mamba_sizes(report)) is not None and report.known.cache is not None:
        layers = sum(1 for layer in report.known.cache.layers if layer.states_bytes)
        return layers * mamba.state_bytes(ranks, dtypes)
    linear = [layer for layer in report.attention.layers if isinstance(layer, LinearLayerAttention)]
    if any(layer.key_heads % ranks or layer.value_heads % ranks for layer in linear):
        raise UnsupportedError("vllm_linear_heads", keys=linear[0].key_heads, values=linear[0].value_heads, ranks=ranks)
    return sum(_linear_bytes(layer, ranks, dtypes) for layer in linear)


def _linear_bytes(layer: LinearLayerAttention, ranks: int, dtypes: tuple[DType, DType]) -> int:
    channels = 2 * layer.key_heads * layer.key_head_dim + layer.value_heads * layer.value_head_dim
    convolution = (layer.conv_kernel - 1) * channels // ranks * dtypes[0].bits // 8
    return convolution + layer.value_heads // ranks * layer.value_head_dim * layer.key_head_dim * dtypes[1].bits // 8
