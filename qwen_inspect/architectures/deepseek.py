"""DeepSeek-V2, V3 (with R1, V3.1 and Kimi-K2's decoder) and V3.2, GLM-4.7-Flash and GLM-5: latent attention, many small experts.

V3.2 and GLM-5 attend to the tokens that an index chooses, and keep its keys too.
Source: transformers 5.23, models/deepseek_v2, deepseek_v3, deepseek_v32, glm4_moe_lite, glm_moe_dsa.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType
from ..errors import UnsupportedError
from ..results.cache import CacheKind
from ..spec import Module
from ..typed import Any
from ..values import dataclass
from .blocks import rotary, stored_as_built
from .decoders import Decoder, check_query_scaling
from .design import Architecture, KeptLayer, StoredForm
from .latent import indexer, latent_attention, read_indexers, read_latent_heads
from .mixture import EXPERTS, SCORE_BIAS, mixture, read_sparse_layers
from .outline import (
    causal_lm,
    keeps_latent,
    read_object,
    read_spans,
    rotary_dim,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .reading import MOST_LAYERS, check_layer_types, flag, integer, not_halved, shown
from .sparse import stored_by_expert

V3_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
V32_DEFAULTS = {**V3_DEFAULTS, "max_position_embeddings": 163840, "index_head_dim": 128, "index_n_heads": 64}
GLM_DEFAULTS = {
    **V32_DEFAULTS,
    "vocab_size": 154880,
    "hidden_size": 6144,
    "intermediate_size": 12288,
    "num_hidden_layers": 78,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 2048,
    "v_head_dim": 256,
    "qk_nope_head_dim": 192,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "index_n_heads": 32,
}


STORED_BY_EXPERT = stored_by_expert("mlp", EXPERTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What a model_type varies.

    aliases: attribute_map of its configuration. score_bias: the dtype of the router's bias.
    mixture: the class's name. dense_first: key of the number of dense layers before the experts, None: one. typed_mlps: whether
    it reads `mlp_layer_types`, biased_mlp: `mlp_bias`. unloaded: as in `Architecture`.
    """

    prefix: str
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str]
    score_bias: DType | None = DType.F32
    mixture: str = "MoE"
    dense_first: str | None = "first_k_dense_replace"
    typed_mlps: bool = True
    biased_mlp: bool = False
    stored_form: StoredForm = STORED_BY_EXPERT
    indexed: bool = False
    unloaded: tuple[str, ...] = ()


VARIANTS: Mapping[str, Variant] = {
    "deepseek_v2": Variant(
        prefix="DeepseekV2",
        defaults={
            **V3_DEFAULTS,
            "vocab_size": 102400,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "moe_intermediate_size": 1407,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "n_shared_experts": 2,
            "n_routed_experts": 64,
            "num_experts_per_tok": None,
            "first_k_dense_replace": 0,
            "max_position_embeddings": 2048,
            "mlp_bias": False,
        },
        aliases={"num_experts": "n_routed_experts"},
        score_bias=None,
        mixture="Moe",
        typed_mlps=False,
        biased_mlp=True,
    ),
    "deepseek_v3": Variant(
        prefix="DeepseekV3",
        defaults=V3_DEFAULTS,
        aliases={"num_local_experts": "n_routed_experts"},
        typed_mlps=False,
        unloaded=(r"model\.layers\.61.*",),
    ),
    "deepseek_v32": Variant(
        prefix="DeepseekV32",
        defaults=V32_DEFAULTS,
        aliases={"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts"},
        indexed=True,
        unloaded=(r"model\.layers\.61.*",),
    ),
    "glm4_moe_lite": Variant(
        prefix="Glm4MoeLite",
        defaults={
            **GLM_DEFAULTS,
            "hidden_size": 2048,
            "intermediate_size": 10240,
            "moe_intermediate_size": 1536,
            "num_hidden_layers": 47,
            "num_attention_heads": 20,
            "num_key_value_heads": 20,
            "n_routed_experts": 64,
            "q_lora_rank": 768,
            "num_experts_per_tok": 4,
        },
        aliases={"num_local_experts": "n_routed_experts", "head_dim": "qk_rope_head_dim"},
        dense_first=None,
        unloaded=(r"model\.layers\.47.*",),
    ),
    "glm_moe_dsa": Variant(
        prefix="GlmMoeDsa",
        defaults=GLM_DEFAULTS,
        aliases={"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts"},
        indexed=True,
        unloaded=(r"model\.layers\.78.*",),
    ),
    "mistral4": Variant(
        prefix="Mistral4",
        defaults={
            **V3_DEFAULTS,
            "vocab_size": 131072,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "n_routed_experts": 128,
            "kv_lora_rank": 256,
            "q_lora_rank": 1024,
            "qk_nope_head_dim": 64,
            "num_experts_per_tok": 4,
            "first_k_dense_replace": 0,
            "max_position_embeddings": 1048576,
            "pad_token_id": 11,
            "rope_parameters": {"type": "yarn", "llama_4_scaling_beta": 0.1},
        },
        aliases={"num_local_experts": "n_routed_experts"},
        score_bias=None,
        typed_mlps=False,
        stored_form=stored_as_built,
    ),
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    model_type = str(config["model_type"])
    text, model, kept = read_latent_decoder(config, model_type, whole_dtype(config))
    return causal_lm(
        config,
        text,
        model,
        kept,
        persistent=(SCORE_BIAS,),
        stored_form=VARIANTS[model_type].stored_form,
        unloaded=VARIANTS[model_type].unloaded,
    )


def read_latent_decoder(
    config: Mapping[str, Any], model_type: str, dtype: DType
) -> tuple[dict[str, Any], Module, tuple[KeptLayer, ...]]:
    """The configuration with its defaults, the bare decoder as `model`, and what each layer keeps."""
    variant = VARIANTS[model_type]
    text = with_defaults(with_aliases(config, variant.aliases), variant.defaults)
    rope, layers = integer(text, "qk_rope_head_dim"), integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    decoder = Decoder(
        prefix=variant.prefix,
        text=text,
        dtype=dtype,
        hidden=integer(text, "hidden_size"),
        layers=layers,
        query_heads=integer(text, "num_attention_heads"),
        kv_heads=read_latent_heads(text),
        head_dim=_read_rotary_head(text, rope, keeps_head_dim=model_type == "deepseek_v3"),
        eps=text["rms_norm_eps"],
    )
    typed = text if variant.typed_mlps else {**text, "mlp_layer_types": None}
    sparse = read_sparse_layers(typed, layers, integer(text, "n_routed_experts"), dense_first=variant.dense_first)
    if variant.indexed:
        indexed = _read_indexed(text, layers, shared=model_type == "glm_moe_dsa")
        integer(text, "q_lora_rank")  # the index reads the compressed queries
    else:
        indexed = _read_unwindowed(text, layers)
    kinds = list(zip(sparse, indexed, strict=True))
    built = {kind: _layer(decoder, variant, *kind) for kind in dict.fromkeys(kinds)}
    if model_type == "mistral4":
        table = rotary("rotary_emb", f"{variant.prefix}RotaryEmbedding", _turned(text))
    else:
        table = decoder.rotary(partial=model_type == "glm4_moe_lite")
    model = decoder.model([built[kind] for kind in kinds], rotary_table=table)
    rank, width = integer(text, "kv_lora_rank"), integer(text, "index_head_dim") if variant.indexed else 0
    kind: CacheKind = "indexed" if variant.indexed else "latent"
    kept = tuple(
        keeps_latent(index, rank, rope, dtype, index_dim=width if has_index else 0, kind=kind)
        for index, has_index in enumerate(indexed)
    )
    return text, model, kept


def _turned(text: Mapping[str, Any]) -> int:
    """Mistral 4 states the channels that turn as a part of the whole head; another number than `qk_rope_head_dim` cannot run.

    Source: Mistral4Config.__post_init__, Mistral4RotaryEmbedding.
    """
    check_query_scaling(text)
    rope = integer(text, "qk_rope_head_dim")
    head = integer(text, "qk_nope_head_dim") + rope
    parameters = {"partial_rotary_factor": rope / head, **read_object(text, "rope_parameters")}
    width = integer({"head_dim": head, **text}, "head_dim")
    if (dim := rotary_dim({**text, "rope_parameters": parameters}, width, partial=False)) != rope:
        raise UnsupportedError("config_key_unsupported", key="partial_rotary_factor", found=shown(dim / width))
    return dim


def _layer(decoder: Decoder, variant: Variant, has_experts: bool, has_index: bool) -> Module:
    prefix, text, dtype = variant.prefix, decoder.text, decoder.dtype
    bias = variant.biased_mlp and flag(text, "mlp_bias", default=False)
    extra = (indexer(prefix, text, dtype, weights=not_halved(dtype)),) if has_index else ()
    mlp = (
        mixture(decoder, score_bias=variant.score_bias, class_name=variant.mixture, bias=bias)
        if has_experts
        else decoder.mlp(bias=bias)
    )
    return decoder.prenorm_layer(latent_attention(prefix, text, dtype, extra=extra), mlp)


def _read_rotary_head(text: Mapping[str, Any], rope: int, *, keeps_head_dim: bool) -> int:
    """Channels that turn: `qk_rope_head_dim`; one class keeps a `head_dim` beside it, which must be the same.

    Source: transformers 5.23, DeepseekV3Config.__post_init__.
    """
    if keeps_head_dim and text.get("head_dim", rope) != rope:
        raise UnsupportedError("config_key_unsupported", key="head_dim", found=shown(text["head_dim"]))
    return rope


def _read_unwindowed(text: Mapping[str, Any], layers: int) -> list[bool]:
    """No layer has an index; all keep every token."""
    if any(kind != "full" for kind, _ in read_spans(text, layers)):
        key = next(
            key for key in ("layer_types", "sliding_window", "attention_chunk_size") if text.get(key) is not None
        )
        raise UnsupportedError("config_key_unsupported", key=key, found=shown(text[key]))
    return [False] * layers


def _read_indexed(text: Mapping[str, Any], layers: int, *, shared: bool) -> list[bool]:
    """Whether each layer has an index of its own; with `shared`, the configuration may let it use an earlier layer's."""
    if (types := text.get("layer_types")) is not None:
        check_layer_types(types, layers, kinds=("indexed_attention", "deepseek_sparse_attention"))
    if not shared:
        return [True] * layers
    return read_indexers(text, layers)
