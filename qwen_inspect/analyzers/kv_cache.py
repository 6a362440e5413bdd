"""The KV cache: exact bytes for each layer, token and sequence, as transformers holds it and as engines reserve it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint import BLOCK_FORMATS, DType
from ..errors import UnsupportedError
from ..report.attention import AnyLayerAttention, LayerAttention, LinearLayerAttention, OtherLayerAttention
from ..report.cache import CacheLayer, CacheReport, EngineCache

VLLM_BLOCK_TOKENS = 16  # vLLM 0.19, CacheConfig.block_size on CUDA


@dataclass(frozen=True, slots=True)
class CacheFormat:
    """How the numbers of a cache are stored: `block_bytes` bytes hold `block_elements` numbers, scales included."""

    name: str
    block_elements: int
    block_bytes: int

    def size_bytes(self, elements: int) -> int:
        """Bytes of `elements` numbers; UnsupportedError where they do not fill whole blocks."""
        if elements % self.block_elements:
            raise UnsupportedError(
                "cache_not_whole_blocks", format=self.name, block=self.block_elements, elements=elements
            )
        return elements // self.block_elements * self.block_bytes


# The last five are llama.cpp's.
# int8, int4 and fp8 count the numbers alone: what scales an engine keeps beside them is its own affair.
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
    """K's and V's formats: one name for both, "K,V", or "auto", which is the model's dtype."""
    names = [ALIASES.get(name, name) for name in text.split(",")]
    names = [str(dtype) if name == "auto" else name for name in names]
    if len(names) > 2 or not all(name in FORMATS for name in names):
        raise UnsupportedError("cache_format_unknown", found=text, known=", ".join(["auto", *ALIASES, *FORMATS]))
    return FORMATS[names[0]], FORMATS[names[-1]]


def cache_report(
    layers: Sequence[AnyLayerAttention], keys: CacheFormat, values: CacheFormat, dtype: DType
) -> CacheReport:
    """What transformers' DynamicCache holds for a model in `dtype` whose layers attend like `layers`."""
    name = keys.name if keys == values else f"{keys.name},{values.name}"

    def kept(layer: AnyLayerAttention) -> CacheLayer:
        match layer:
            case LayerAttention():
                return _cache_layer(layer, keys, values)
            case LinearLayerAttention():
                return _state_layer(layer, dtype)
            case OtherLayerAttention(cache_kind=kind):
                raise UnsupportedError("generic_cache_format", kind=kind, format=name)

    return CacheReport(dtype=name, layers=tuple(map(kept, layers)))


def _state_layer(layer: LinearLayerAttention, dtype: DType) -> CacheLayer:
    """The convolution's last inputs (batch, channels of q, k and v, conv_kernel) in the model's dtype, and the recurrent state
    (batch, value_heads, key_head_dim, value_head_dim), which is float32 in any model. No format of K and V changes them.

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

    A sliding layer keeps window - 1 tokens, for the next one completes its window.
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


def kv_heads_per_rank(kv_heads: int, ranks: int) -> int:
    """KV heads of one tensor-parallel rank: an even share, or one head repeated where there are more ranks than heads.

    Source: vLLM 0.19, ModelConfig.get_num_kv_heads and Qwen2Attention.__init__, which asserts that one divides the other.
    """
    if kv_heads % ranks and ranks % kv_heads:
        raise UnsupportedError("cache_heads_over_ranks", heads=kv_heads, ranks=ranks)
    return max(1, kv_heads // ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedCache:
    """A cache in blocks of `block_tokens` tokens, `block_bytes` bytes each over all layers of one rank."""

    block_tokens: int
    block_bytes: int

    def blocks(self, budget_bytes: int) -> int:
        return budget_bytes // self.block_bytes

    def tokens(self, budget_bytes: int) -> int:
        return self.blocks(budget_bytes) * self.block_tokens

    def size_bytes(self, *, tokens: int, batch: int = 1) -> int:
        """Bytes of `batch` sequences, each in whole blocks."""
        return batch * -(-tokens // self.block_tokens) * self.block_bytes


def _softmax_only(layers: Sequence[AnyLayerAttention], engine: str) -> list[LayerAttention]:
    """The layers of a model that has no linear ones: how an engine lays out their states is not known here."""
    if not all(isinstance(layer, LayerAttention) for layer in layers):
        raise UnsupportedError("cache_engine_linear", engine=engine)
    return [layer for layer in layers if isinstance(layer, LayerAttention)]


def vllm_cache(layers: Sequence[AnyLayerAttention], cache_format: CacheFormat, *, ranks: int = 1) -> BlockedCache:
    """What vLLM reserves on one of `ranks` tensor-parallel ranks, for a model whose layers all see every token.

    Source: vLLM 0.19, FullAttentionSpec.page_size_bytes: 2 x block_size x kv_heads x head_size x bytes, a layer.
    """
    full = _softmax_only(layers, "vLLM")
    if any(layer.window_tokens is not None for layer in full):
        raise UnsupportedError("cache_vllm_hybrid")
    for layer in full:
        if layer.query_heads % ranks:
            raise UnsupportedError("cache_query_heads_over_ranks", heads=layer.query_heads, ranks=ranks)
    per_token = sum(
        2 * cache_format.size_bytes(kv_heads_per_rank(layer.kv_heads, ranks) * layer.head_dim) for layer in full
    )
    return BlockedCache(block_tokens=VLLM_BLOCK_TOKENS, block_bytes=VLLM_BLOCK_TOKENS * per_token)


def engine_caches(
    layers: Sequence[AnyLayerAttention], dtype: DType, *, tokens: int, batch: int, ranks: int
) -> tuple[EngineCache, ...]:
    """What transformers holds and engines reserve for the same workload, each in the formats that it has.

    llama.cpp reserves `tokens` for each of `batch` sequences: its n_ctx is their sum.
    """
    auto, _ = read_formats("auto", dtype)

    def row(engine: str, cache_format: CacheFormat, size_bytes: Callable[[], int]) -> EngineCache:
        try:
            return EngineCache(engine=engine, format=cache_format.name, size_bytes=size_bytes())
        except UnsupportedError as error:
            return EngineCache(engine=engine, format=cache_format.name, size_bytes=None, reason=error.message)

    def vllm(cache_format: CacheFormat) -> Callable[[], int]:
        return lambda: vllm_cache(layers, cache_format, ranks=ranks).size_bytes(tokens=tokens, batch=batch)

    def llama_cpp(cache_format: CacheFormat) -> Callable[[], int]:
        return lambda: batch * llama_cpp_bytes(layers, cache_format, cache_format, tokens=tokens)

    return (
        row(
            "transformers", auto, lambda: cache_report(layers, auto, auto, dtype).size_bytes(tokens=tokens, batch=batch)
        ),
        *(row("vllm", one, vllm(one)) for one in (auto, FORMATS["fp8"])),
        *(row("llama_cpp", FORMATS[name], llama_cpp(FORMATS[name])) for name in ("float16", "q8_0", "q4_0")),
    )


def llama_cpp_bytes(layers: Sequence[AnyLayerAttention], keys: CacheFormat, values: CacheFormat, *, tokens: int) -> int:
    """What llama.cpp reserves for a context of `tokens`, whatever is filled of it; windows are not taken into account.

    Source: llama.cpp, llama_kv_cache: K and V tensors of n_embd_k_gqa x n_ctx and n_embd_v_gqa x n_ctx a layer.
    """
    return sum(
        tokens * (keys.size_bytes(layer.kv_heads * layer.head_dim) + values.size_bytes(layer.kv_heads * layer.head_dim))
        for layer in _softmax_only(layers, "llama.cpp")
    )
