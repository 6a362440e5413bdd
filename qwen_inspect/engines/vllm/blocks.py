"""vLLM's KV cache: blocks on one tensor-parallel rank, and what fits a budget.

Source: vLLM 0.19.0, v1/core/kv_cache_utils.py, v1/kv_cache_interface.py and model_executor/models/config.py; other versions group
layers and print tokens differently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ...checkpoint import DType
from ...errors import UnsupportedError
from ...results.attention import AnyLayerAttention, LayerAttention, LinearLayerAttention
from ...structure.kv_cache import CacheFormat, checkpoint_format, read_formats
from ...typed import TYPE_CHECKING, Any
from ...values import dataclass, replace

if TYPE_CHECKING:
    from ...results.model import Report

BLOCK_TOKENS = 16  # CacheConfig.DEFAULT_BLOCK_SIZE, and what FlashAttention's block sizes are multiples of
SPREAD = (3, 2)  # from 0.18 on
Drafting = tuple[Sequence[LayerAttention], int, int]
BLOCK_FORMATS = ("float32", "bfloat16", "float16", "fp8")


def served_format(report: Report, cache_format: str) -> CacheFormat:
    """The cache's number format; UnsupportedError for GGUF files, unread weights and formats that blocks do not have."""
    if report.known.quantised_by == "gguf":
        raise UnsupportedError("vllm_gguf")
    if (unread := report.known.unread) is not None:
        raise unread
    served = read_formats(checkpoint_format(report.config or {}, cache_format), report.spec.dtype)[0]
    if served.name not in BLOCK_FORMATS:
        raise UnsupportedError("vllm_cache_format", found=served.name, known=", ".join(BLOCK_FORMATS[1:]))
    return served


def kv_heads_per_rank(kv_heads: int, ranks: int) -> int:
    """KV heads of one tensor-parallel rank: an even share, or one replicated head if there are more ranks than heads.

    Source: ModelConfig.get_num_kv_heads and Qwen2Attention.__init__, which asserts that one divides the other.
    """
    if kv_heads % ranks and ranks % kv_heads:
        raise UnsupportedError("cache_heads_over_ranks", heads=kv_heads, ranks=ranks)
    return max(1, kv_heads // ranks)


@dataclass(frozen=True, slots=True)
class PageKind:
    """Everything in which caches of layers differ. window_tokens: 0 without a window; block_tokens: 0 for a state."""

    page_bytes: int
    block_tokens: int
    window_tokens: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPool:
    """How a budget is divided. All groups of layers share one pool of blocks; a block is `block_bytes` over a group's layers.

    groups: the kind of layer of each group. state_blocks: blocks of a sequence's state; 2 with prefix caching, which also keeps
    the state at the end of the prefix. chunked: windows are chunks, of which a sequence holds its own and a step's tokens.
    proposed: tokens of speculative decoding, each of which has a state of its own. rings: groups of which a sequence holds one
    block, whatever its length.
    """

    block_bytes: int
    groups: tuple[PageKind, ...]
    state_blocks: int = 1
    chunked: bool = False
    proposed: int = 0
    rings: int = 0

    @property
    def block_tokens(self) -> int:
        """Tokens in an attention block; the fewest if groups differ, 0 without attention."""
        return min((group.block_tokens for group in self.groups if group.block_tokens), default=0)

    def blocks(self, budget_bytes: int) -> int:
        return max(0, budget_bytes) // self.block_bytes

    def tokens(self, blocks: int, sequence_tokens: int) -> int:
        """Tokens as vLLM prints them, from even shares of the blocks. A state block counts a whole sequence or a block's tokens.

        Source: kv_cache_utils._report_kv_cache_config; MambaModelConfig and "align" mode, mamba_block_size.
        """
        state_tokens = sequence_tokens if self.state_blocks == 1 else self.block_tokens
        return blocks // len(self.groups) * min(group.block_tokens or state_tokens for group in self.groups)

    def sequence_blocks(self, tokens: int, batched_tokens: int | None = None) -> int | None:
        """Blocks of all groups that a sequence of `tokens` tokens may need; None if that depends on unknown `batched_tokens`.

        batched_tokens: the most tokens of one step (max_num_batched_tokens), held in addition to a window.
        Source: kv_cache_interface, max_memory_usage_bytes of FullAttentionSpec, SlidingWindowSpec,
        ChunkedLocalAttentionSpec and MambaSpec.
        """
        blocks = self.rings
        for group in self.groups:
            if not group.block_tokens:
                blocks += self.state_blocks + self.proposed
            elif not group.window_tokens:
                blocks += -(-tokens // group.block_tokens)
            elif batched_tokens is None:
                return None
            else:
                beside = 0 if self.chunked else 1  # a window may begin within a block; it includes the token itself
                held_tokens = min(group.window_tokens - beside + batched_tokens, tokens)
                blocks += -(-held_tokens // group.block_tokens) + beside
        return blocks

    def size_bytes(self, *, tokens: int, batch: int = 1, batched_tokens: int | None = None) -> int:
        """Bytes of the blocks of `batch` sequences of `tokens` tokens; UnsupportedError if unknown."""
        blocks = self.sequence_blocks(tokens, batched_tokens)
        if blocks is None:
            raise UnsupportedError("cache_engine_window", engine="vLLM")
        return batch * blocks * self.block_bytes


def block_pool(
    layers: Sequence[AnyLayerAttention],
    cache_format: CacheFormat,
    *,
    ranks: int,
    states: tuple[DType, DType],
    block_tokens: int = BLOCK_TOKENS,
    drafting: Drafting = ((), 1, 0),
    spread: tuple[int, int] = SPREAD,
    windows: bool = True,
) -> BlockPool:
    """The blocks on one of `ranks` ranks. states: dtypes of a linear layer's convolution and recurrent state.

    drafting: a drafter's layers and ranks, and the tokens proposed at once, by which convolutions keep more.
    spread: see shared_pool. windows: whether layers with a window hold it alone; if not, they hold all tokens where others do.

    Raises UnsupportedError if vLLM cannot shard the heads over the ranks, or cannot make the layers' pages equal.
    Source: kv_cache_utils.get_kv_cache_groups.
    """
    if cache_format.name not in BLOCK_FORMATS:
        raise UnsupportedError("vllm_cache_format", found=cache_format.name, known=", ".join(BLOCK_FORMATS))
    softmax = [layer for layer in layers if isinstance(layer, LayerAttention)]
    linear = [layer for layer in layers if isinstance(layer, LinearLayerAttention)]
    if len(softmax) + len(linear) < len(layers) or not softmax:
        raise UnsupportedError("cache_engine_other", engine="vLLM")
    block_tokens = BLOCK_TOKENS if linear else block_tokens  # a hybrid's follows from its states
    kinds = [softmax_kind(layer, cache_format, ranks, block_tokens) for layer in softmax]
    drafted, draft_ranks, proposed = drafting
    kinds += [softmax_kind(layer, cache_format, draft_ranks, block_tokens) for layer in drafted]
    if linear:
        states_bytes = [linear_state_bytes(layer, ranks, states, proposed) for layer in linear]
        return replace(hybrid_pool(kinds, states_bytes, spread), proposed=proposed)
    if not windows and any(not kind.window_tokens for kind in kinds):
        kinds = [replace(kind, window_tokens=0) for kind in kinds]
    if len({kind.window_tokens for kind in kinds}) == 1:
        return one_group(kinds)
    return shared_pool(_same_pages(kinds), spread)


def softmax_kind(layer: LayerAttention, cache_format: CacheFormat, ranks: int, block_tokens: int) -> PageKind:
    """K and V of a block: (block, kv_heads, head_dim) each. Source: AttentionSpec.real_page_size_bytes."""
    if layer.query_heads % ranks:
        raise UnsupportedError("cache_query_heads_over_ranks", heads=layer.query_heads, ranks=ranks)
    heads = kv_heads_per_rank(layer.kv_heads, ranks)
    page_bytes = 2 * block_tokens * cache_format.size_bytes(heads * layer.head_dim)
    return PageKind(page_bytes, block_tokens, layer.window_tokens or 0, (heads, layer.head_dim))


def one_group(kinds: Sequence[PageKind]) -> BlockPool:
    """Layers that cache the same tokens share one block table, even if their page sizes differ."""
    return BlockPool(block_bytes=sum(kind.page_bytes for kind in kinds), groups=(kinds[0],))


def _same_pages(kinds: Sequence[PageKind]) -> list[PageKind]:
    """Enlarges smaller pages, which then hold more tokens, to the size of the largest.

    Source: kv_cache_utils.unify_kv_cache_spec_page_size.
    """
    most_bytes = max(kind.page_bytes for kind in kinds)
    if any(most_bytes % kind.page_bytes for kind in kinds):
        raise UnsupportedError("vllm_unequal_pages")
    return [
        replace(kind, page_bytes=most_bytes, block_tokens=kind.block_tokens * (most_bytes // kind.page_bytes))
        for kind in kinds
    ]


def shared_pool(kinds: Sequence[PageKind], spread: tuple[int, int] = SPREAD) -> BlockPool:
    """Groups of equally many layers of a kind: as many as the rarest kind has, or the commonest if under `spread` times as many.

    Source: kv_cache_utils._get_kv_cache_groups_uniform_page_size.
    """
    layers = Counter(kinds)
    fewest, most = min(layers.values()), max(layers.values())
    group_layers = most if spread[1] * most < spread[0] * fewest else fewest
    groups = [kind for kind, count in layers.items() for _ in range(-(-count // group_layers))]
    return BlockPool(block_bytes=group_layers * kinds[0].page_bytes, groups=tuple(groups))


def hybrid_pool(kinds: Sequence[PageKind], states_bytes: Sequence[int], spread: tuple[int, int] = SPREAD) -> BlockPool:
    """Enlarges attention blocks until a page is at least as large as a state, which is padded to it.

    Source: HybridAttentionMambaModelConfig.verify_and_update_config, without prefix caching or in its "align" mode.
    """
    if len(set(kinds)) > 1 or kinds[0].window_tokens or len(set(states_bytes)) > 1:
        raise UnsupportedError("vllm_unequal_pages")
    state_bytes = states_bytes[0]
    times = max(1, -(-state_bytes // kinds[0].page_bytes))
    page_bytes = times * kinds[0].page_bytes
    attention = replace(kinds[0], page_bytes=page_bytes, block_tokens=times * BLOCK_TOKENS)
    state = PageKind(page_bytes, 0, 0, ())
    return shared_pool([*[attention] * len(kinds), *[state] * len(states_bytes)], spread)


def linear_state_bytes(layer: LinearLayerAttention, ranks: int, dtypes: tuple[DType, DType], proposed: int) -> int:
    """A rank's share of a sequence's state: (conv_kernel - 1, channels) and (value_heads, value_head_dim, key_head_dim).

    The convolution keeps a column more for each of `proposed` tokens.
    Source: mamba_utils.MambaStateShapeCalculator.gated_delta_net_state_shape.
    """
    if layer.key_heads % ranks or layer.value_heads % ranks:
        raise UnsupportedError("vllm_linear_heads", keys=layer.key_heads, values=layer.value_heads, ranks=ranks)
    channels = 2 * layer.key_heads * layer.key_head_dim + layer.value_heads * layer.value_head_dim
    convolution = (layer.conv_kernel - 1 + proposed) * channels // ranks
    recurrent = layer.value_heads // ranks * layer.value_head_dim * layer.key_head_dim
    return convolution * dtypes[0].bits // 8 + recurrent * dtypes[1].bits // 8


def state_dtypes(config: Mapping[str, Any], dtype: DType) -> tuple[DType, DType]:
    """Dtypes of a linear layer's convolution (the model's) and recurrent state (the same, unless a class reads mamba_ssm_dtype).

    Source: mamba_utils.MambaStateDtypeCalculator; Qwen3_5ForConditionalGenerationConfig, and Qwen4Exp's classes below it.
    """
    names = config.get("architectures")
    state_dtype = text_part(config).get("mamba_ssm_dtype")
    reads = isinstance(names, list) and names[:1] in (
        ["Qwen3_5ForConditionalGeneration"],
        ["Qwen3_5MoeForConditionalGeneration"],
        ["Qwen4ExpForConditionalGeneration"],
        ["Qwen4ExpForCausalLM"],
    )
    return dtype, DType.F32 if reads and state_dtype == "float32" else dtype


# model_types whose layers all keep one latent for all heads (MLA). Of vLLM's own list kimi_linear and bailing_hybrid keep states
# too. Not of its list, whatever transformers caches: minicpm3 and youtu (whole heads).
# Source: vLLM 0.19.0, transformers_utils/model_arch_config_convertor.is_deepseek_mla; axk1 (there AXK1, as its release spells it)
# also in commit 00bb6f59. mistral4: a release has params.json, which vLLM reads first (transformers_utils/config.get_config) and
# makes a deepseek_v3 of (configs/mistral.adapt_config_dict).
INDEXED_TYPES = ("deepseek_v32", "glm_moe_dsa")
LATENT_TYPES = (
    *INDEXED_TYPES,
    *("AXK1", "axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_k2", "longcat_flash"),
    *("mistral4", "pangu_ultra_moe"),
)


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a configuration. Source: vLLM 0.19.0, transformers_utils/config.get_hf_text_config."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def latent_width(text: Mapping[str, Any]) -> int | None:
    """Numbers in a token's latent in each layer: compressed keys and values, and the rotary part of the keys. None without MLA.

    text: as `text_part` gives it. Raises UnsupportedError for sparse attention of types whose index is not known.
    """
    rank, rotary = text.get("kv_lora_rank"), text.get("qk_rope_head_dim")
    if text.get("model_type") not in LATENT_TYPES or type(rank) is not int or type(rotary) is not int:
        return None
    sparse = text.get("index_topk") is not None
    if sparse != (text["model_type"] in INDEXED_TYPES) or rank < 1 or rotary < 0:
        raise UnsupportedError("cache_engine_other", engine="vLLM")
    return rank + rotary


def latent_pool(layers: int, width: int, cache_format: CacheFormat, capability: tuple[int, int] | None) -> BlockPool:
    """MLA's blocks, whole on every rank, in the block size of the card's kernels (16 tokens if the card is unknown).

    Source: MLAAttentionSpec.real_page_size_bytes; platforms/cuda._get_backend_priorities with each backend's block sizes.
    """
    if cache_format.name not in BLOCK_FORMATS:
        raise UnsupportedError("vllm_cache_format", found=cache_format.name, known=", ".join(BLOCK_FORMATS))
    major = 0 if capability is None else capability[0]
    tokens = 32 if major == 10 else 64 if major == 9 and cache_format.name == "fp8" else BLOCK_TOKENS
    kind = PageKind(tokens * cache_format.size_bytes(width), tokens, 0, (width,))
    return one_group([kind] * layers)
