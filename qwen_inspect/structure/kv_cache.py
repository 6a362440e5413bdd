"""The KV cache in transformers: exact bytes by layer, token and sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint import BLOCK_FORMATS, DType
from ..errors import UnsupportedError
from ..results.attention import (
    AnyLayerAttention,
    EncoderLayerAttention,
    LayerAttention,
    LinearLayerAttention,
    OtherLayerAttention,
)
from ..results.cache import CacheLayer, CacheReport
from ..typed import Any
from ..values import dataclass


@dataclass(frozen=True, slots=True)
class CacheFormat:
    """How the numbers of a cache are stored: `block_bytes` bytes hold `block_elements` numbers, scales included."""

    name: str
    block_elements: int
    block_bytes: int

    def size_bytes(self, elements: int) -> int:
        """Bytes of `elements` numbers; UnsupportedError if they do not fill whole blocks."""
        if elements % self.block_elements:
            raise UnsupportedError(
                "cache_not_whole_blocks", format=self.name, block=self.block_elements, elements=elements
            )
        return elements // self.block_elements * self.block_bytes


# The last five are llama.cpp's.
# int8, int4 and fp8 count only the numbers: scales depend on the engine.
FORMATS: Mapping[str, CacheFormat] = {
    name: CacheFormat(name, elements, size_bytes)
    for name, elements, size_bytes in (
        ("float64", 1, 8),
        ("float32", 1, 4),
        ("bfloat16", 1, 2),
        ("float16", 1, 2),
        ("fp8", 1, 1),
        ("int8", 1, 1),
        ("int4", 2, 1),
        *(
            (name, BLOCK_FORMATS[name.upper()].block_elements, BLOCK_FORMATS[name.upper()].block_bytes)
            for name in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
        ),
    )
}
ALIASES: Mapping[str, str] = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def read_formats(text: str, dtype: DType) -> tuple[CacheFormat, CacheFormat]:
    """K's and V's formats from one name for both, or "K,V"; "auto" is the model's dtype."""
    names = [ALIASES.get(name, name) for name in text.split(",")]
    names = [str(dtype) if name == "auto" else name for name in names]
    if len(names) > 2 or not all(name in FORMATS for name in names):
        raise UnsupportedError("cache_format_unknown", found=text, known=", ".join(["auto", *ALIASES, *FORMATS]))
    return FORMATS[names[0]], FORMATS[names[-1]]


def checkpoint_format(config: Mapping[str, Any], requested: str) -> str:
    """The cache format that vLLM uses: the one that the checkpoint's quantisation names, else `requested`.

    compressed-tensors' overrides any request, modelopt's replaces only "auto". Raises UnsupportedError for a scheme that vLLM
    does not load, that is any but 8-bit floats.
    Source: model_executor/layers/attention/attention.py and CompressedTensorsKVCacheMethod; utils/torch_utils.py,
    resolve_kv_cache_dtype_string.
    """
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, Mapping):
        return requested
    scheme, method = quantisation.get("kv_cache_scheme"), str(quantisation.get("quant_method", ""))
    if method == "compressed-tensors" and scheme is not None:
        if not _in_8_bits(scheme):
            raise UnsupportedError("vllm_cache_scheme", found=str(scheme)[:80])
        return "fp8"
    if method.startswith("modelopt") and requested == "auto":
        inner = quantisation.get("quantization")
        inner = inner if isinstance(inner, Mapping) else quantisation
        candidates = (
            inner.get("kv_cache_scheme"),
            scheme,
            inner.get("kv_cache_quant_algo"),
            quantisation.get("kv_cache_quant_algo"),
        )
        algorithm = next((candidate for candidate in candidates if candidate), None)
        static = isinstance(algorithm, Mapping) and algorithm.get("dynamic") is False
        if str(algorithm).lower() == "fp8" or (static and _in_8_bits(algorithm)):
            return "fp8"
    return requested


def _in_8_bits(scheme: Any) -> bool:
    return isinstance(scheme, Mapping) and scheme.get("type") == "float" and scheme.get("num_bits") == 8


def cache_report(
    layers: Sequence[AnyLayerAttention], keys: CacheFormat, values: CacheFormat, dtype: DType
) -> CacheReport:
    """transformers' DynamicCache for a model in `dtype` with these attention layers."""
    name = keys.name if keys == values else f"{keys.name},{values.name}"

    def cached(layer: AnyLayerAttention) -> CacheLayer:
        match layer:
            case LayerAttention():
                return _cache_layer(layer, keys, values)
            case LinearLayerAttention():
                return _state_layer(layer, dtype)
            case EncoderLayerAttention(index=index):
                return CacheLayer(index=index, kind="none", bytes_per_token=0, states_bytes=(), window_tokens=None)
            case OtherLayerAttention(cache_kind=kind):
                raise UnsupportedError("generic_cache_format", kind=kind, format=name)

    return CacheReport(dtype=name, layers=tuple(map(cached, layers)))


def _state_layer(layer: LinearLayerAttention, dtype: DType) -> CacheLayer:
    """The convolution's last inputs (batch, channels of q, k and v, conv_kernel) in the model's dtype, and the recurrent state
    (batch, value_heads, key_head_dim, value_head_dim), always float32. The format of K and V does not affect them.

    Source: transformers 5.23, cache_utils.LinearAttentionLayer, and torch_chunk_gated_delta_rule, which computes in float32.
    """
    channels = 2 * layer.key_heads * layer.key_head_dim + layer.value_heads * layer.value_head_dim
    conv_bytes = channels * layer.conv_kernel * dtype.bits // 8
    recurrent_bytes = layer.value_heads * layer.key_head_dim * layer.value_head_dim * DType.F32.bits // 8
    return CacheLayer(
        index=layer.index,
        kind="linear",
        bytes_per_token=0,
        states_bytes=(conv_bytes, recurrent_bytes),
        window_tokens=None,
    )


def _cache_layer(layer: LayerAttention, keys: CacheFormat, values: CacheFormat) -> CacheLayer:
    """K and V of one layer: (batch, kv_heads, tokens, head_dim) each.

    A sliding layer keeps window - 1 tokens: the next token completes the window.
    Source: transformers 5.23, cache_utils.DynamicLayer and DynamicSlidingWindowLayer.
    """
    elements = layer.kv_heads * layer.head_dim
    return CacheLayer(
        index=layer.index,
        kind=layer.span,
        bytes_per_token=keys.size_bytes(elements) + values.size_bytes(elements),
        states_bytes=(),
        window_tokens=layer.window_tokens,
    )
