"""Sparse attention of DeepSeek-V3.2 and GLM-5 in vLLM: beside the latents, keys of an index in FP8, and the index's buffers.

Source: vLLM 0.19.0, model_executor/models/deepseek_v2.py (Indexer, DeepseekV32IndexerCache, DeepseekV2Model),
model_executor/layers/sparse_attn_indexer.py, v1/attention/backends/mla/indexer.py and flashmla_sparse.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import UnsupportedError
from ...structure.kv_cache import CacheFormat
from ...typed import Any
from ...units import MIB
from ...values import dataclass
from .blocks import BLOCK_FORMATS, INDEXED_TYPES, BlockPool, PageKind, one_group

INDEX_BLOCK_TOKENS = (
    64  # DeepseekV32IndexerBackend.get_supported_kernel_block_sizes, of the first layer that is registered
)
PACKED_LATENT_BYTES = 656  # a token's latent in fp8_ds_mla: MLAAttentionSpec.real_page_size_bytes
SCALED_NUMBERS = 128  # numbers of an index key that share a float32 scale: Indexer.quant_block_size
PREFILL_SEQUENCES = 40  # longest sequences that the index's workspace holds: get_max_prefill_buffer_size
UNPACKED_SEQUENCES = 5  # of latents in bfloat16, beside a packed cache: get_prefill_workspace_size
LOGITS_BYTES = 512 * MIB  # VLLM_SPARSE_INDEXER_MAX_LOGITS_MB, which the profile run takes for a moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """key_bytes: of a token; chosen: tokens that attention reads; packed: whether latents are fp8_ds_mla.

    every, offset: one of `every` layers has an index, from the layer `offset` - 1 on, and each before.
    """

    key_bytes: int
    chosen: int
    packed: bool
    every: int = 1
    offset: int = 2

    def of_layer(self, layer: int) -> bool:
        """Whether a layer keeps an index. Source: DeepseekV2MLAAttention.__init__ of 0.24.0."""
        return max(layer - self.offset + 1, 0) % self.every == 0

    def chosen_bytes(self, step_tokens: int) -> int:
        """The tokens chosen for each of a step's, as int32; all layers share them. It is made with the model."""
        return 4 * step_tokens * self.chosen

    def workspace_bytes(self, context_tokens: int, width: int, queries_bytes: int) -> int:
        """The workspace that stays: keys of an index or, of a packed cache, queries and latents in bfloat16."""
        unpacked = queries_bytes + (2 * UNPACKED_SEQUENCES * context_tokens * width if self.packed else 0)
        return max(PREFILL_SEQUENCES * context_tokens * self.key_bytes, unpacked)


def sparse_index(
    text: Mapping[str, Any], cache_format: CacheFormat, capability: tuple[int, int] | None, version: tuple[int, int]
) -> Index | None:
    """The index of a configuration; None without one.

    Raises UnsupportedError for versions before 0.16, layers that share an index before 0.24 or by a pattern, cards without a
    kernel, and where the card is not known but decides the format.
    Source: platforms/cuda._get_backend_priorities; MLAAttention.__init__.
    """
    if text.get("model_type") not in INDEXED_TYPES:
        return None
    width, chosen = text.get("index_head_dim", SCALED_NUMBERS), text.get("index_topk")
    every, offset = text.get("index_topk_freq", 1), text.get("index_skip_topk_offset", 2)
    if type(chosen) is not int or any(
        type(number) is not int or number < 1 for number in (width, chosen, every, offset)
    ):
        raise UnsupportedError("cache_engine_other", engine="vLLM")
    if width % SCALED_NUMBERS or version < (0, 16) or text.get("index_topk_pattern") is not None:
        raise UnsupportedError("cache_engine_other", engine="vLLM")
    if every > 1 and version < (0, 24):
        raise UnsupportedError("vllm_shared_index")
    fp8 = cache_format.name == "fp8"
    major = None if capability is None else capability[0]
    if major not in (None, 9, 10) or (fp8 and major is None):
        raise UnsupportedError("vllm_sparse_card")
    packed = fp8 and (major == 9 or version < (0, 19))
    key_bytes = width + 4 * (width // SCALED_NUMBERS)
    return Index(key_bytes=key_bytes, chosen=chosen, packed=packed, every=every, offset=offset)


def indexed_pool(layers: Sequence[int], width: int, index: Index, cache_format: CacheFormat) -> BlockPool:
    """Blocks of 64 tokens of these layers, whole on every rank: in one group each one's latents, and the keys of its index."""
    if cache_format.name not in BLOCK_FORMATS:
        raise UnsupportedError("vllm_cache_format", found=cache_format.name, known=", ".join(BLOCK_FORMATS))
    token_bytes = PACKED_LATENT_BYTES if index.packed else cache_format.size_bytes(width)
    latents, keys = (
        PageKind(INDEX_BLOCK_TOKENS * size_bytes, INDEX_BLOCK_TOKENS, 0, (size_bytes,))
        for size_bytes in (token_bytes, index.key_bytes)
    )
    return one_group([*[latents] * len(layers), *[keys] * sum(map(index.of_layer, layers))])
