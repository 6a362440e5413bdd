"""Multi-head latent attention (MLA), with or without an index of tokens: its modules, shared by the families.

Source: DeepSeek-V2 (arXiv 2405.04434); DeepSeek-V3.2 (arXiv 2512.02556); transformers 5.23, DeepseekV3Attention and
DeepseekV32Indexer.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType
from ..errors import UnsupportedError
from ..spec import Module
from ..typed import Any
from .outline import layer_norm, linear, norm
from .reading import check_layer_types, flag, integer, optional_integer, shown

NORM_EPS = 1e-6  # of the norms within, whatever the configuration says


def read_latent_heads(text: Mapping[str, Any]) -> int:
    """As many as query heads: these classes cannot run others, for each query head has keys and values of its own."""
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    if kv_heads is not None and kv_heads != heads:
        raise UnsupportedError("config_key_unsupported", key="num_key_value_heads", found=shown(kv_heads))
    return integer(text, "num_attention_heads")


def latent_attention(
    prefix: str,
    text: Mapping[str, Any],
    dtype: DType,
    *,
    class_name: str | None = None,
    extra: tuple[Module, ...] = (),
    norm_eps: object = NORM_EPS,
) -> Module:
    """Queries, through a compressed form if `q_lora_rank` is set; compressed keys and values beside a rotated key."""
    hidden, heads = integer(text, "hidden_size"), integer(text, "num_attention_heads")
    key_rank, rope = integer(text, "kv_lora_rank"), integer(text, "qk_rope_head_dim", at_least=0)
    nope, values = integer(text, "qk_nope_head_dim"), integer(text, "v_head_dim")
    bias = flag(text, "attention_bias", default=False)
    query_rank = optional_integer(text, "q_lora_rank", at_least=1)
    queries = heads * (nope + rope)
    if query_rank is None:
        query: tuple[Module, ...] = (linear("q_proj", hidden, queries, dtype),)
    else:
        query = (
            linear("q_a_proj", hidden, query_rank, dtype, bias=bias),
            norm("q_a_layernorm", f"{prefix}RMSNorm", query_rank, dtype, eps=norm_eps),
            linear("q_b_proj", query_rank, queries, dtype),
        )
    return Module(
        name="self_attn",
        class_name=class_name or f"{prefix}Attention",
        children=(
            *query,
            linear("kv_a_proj_with_mqa", hidden, key_rank + rope, dtype, bias=bias),
            norm("kv_a_layernorm", f"{prefix}RMSNorm", key_rank, dtype, eps=norm_eps),
            linear("kv_b_proj", key_rank, heads * (nope + values), dtype),
            linear("o_proj", heads * values, hidden, dtype, bias=bias),
            *extra,
        ),
    )


def indexer(prefix: str, text: Mapping[str, Any], dtype: DType, *, weights: DType) -> Module:
    """Scores of earlier tokens, of which attention then reads the best: `index_n_heads` queries and one key a token.

    weights: the dtype of the heads' weights.
    """
    hidden, heads, width = (integer(text, key) for key in ("hidden_size", "index_n_heads", "index_head_dim"))
    return Module(
        name="indexer",
        class_name=f"{prefix}Indexer",
        children=(
            linear("wq_b", integer(text, "q_lora_rank"), heads * width, dtype),
            linear("wk", hidden, width, dtype),
            layer_norm("k_norm", width, dtype, eps=NORM_EPS),
            linear("weights_proj", hidden, heads, weights),
        ),
    )


def read_indexers(text: Mapping[str, Any], layers: int) -> list[bool]:
    """Whether each layer has an index of its own, else an earlier layer's, by GLM-5's keys.

    Source: transformers 5.23, GlmMoeDsaConfig.__post_init__.
    """
    indexers, pattern = text.get("indexer_types"), text.get("index_topk_pattern")
    if indexers is None and pattern is None:
        every = integer({"index_topk_freq": 1, **text}, "index_topk_freq", at_least=0) or 1
        offset = integer({"index_skip_topk_offset": 2, **text}, "index_skip_topk_offset", at_least=0)
        return [max(index - offset + 1, 0) % every == 0 for index in range(layers)]
    if indexers is None:
        names = {"F": "full", "S": "shared"}
        indexers = [names.get(letter, letter) for letter in pattern] if isinstance(pattern, str) else pattern
    check_layer_types(indexers, layers, kinds=("full", "shared"), key="indexer_types")
    return [kind == "full" for kind in indexers or ()]
