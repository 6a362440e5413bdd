"""GLM-5.3-Flash: a vision tower; several layers of delta attention to each of latent attention, whose index reads pools of
tokens; several residual streams.

Source: transformers 5.23, models/glm5_next; Kimi Linear (arXiv 2510.26692); DeepSeek-V3.2 (arXiv 2512.02556).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .blocks import linear, rotary
from .decoders import Decoder
from .design import Architecture, KeptLayer
from .glm4v import patch_convolution, patch_merger
from .kimi_linear import DeltaSizes, delta_attention, delta_states, stored_attention
from .latent import indexer, latent_attention, read_indexers, read_latent_heads
from .mixture import EXPERTS, SCORE_BIAS, mixture, read_sparse_layers
from .outline import (
    causal_lm,
    gated_mlp,
    keeps_latent,
    keeps_states,
    layer_list,
    norm,
    read_object,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .reading import MOST_LAYERS, check_layer_types, flag, integer, part, shown
from .sizes import check_sizes
from .sparse import stored_by_expert

TEXT: Mapping[str, Any] = {
    "vocab_size": 154880,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 45,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_shared_experts": 1,
    "n_routed_experts": 288,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 0,
    "v_head_dim": 256,
    "qk_nope_head_dim": 256,
    "num_experts_per_tok": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 1048576,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 154820,
    "attention_bias": False,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "index_kpool": 16,
    "linear_head_dim": 128,
    "linear_num_heads": 64,
    "linear_conv_kernel_dim": 4,
    "hc_mult": 4,
}
VISION: Mapping[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "hidden_act": "silu",
    "attention_bias": True,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "rms_norm_eps": 1e-5,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 1536,
    "intermediate_size": 4096,
    "projection_intermediate_size": 10240,
}
PREFIX = "Glm5NextText"
TYPES = ("linear_attention", "indexed_attention")
# Loaded as float32 whatever the dtype. Source: Glm5NextPreTrainedModel._keep_in_fp32_modules_strict
WHOLE = DType.F32


def architecture(config: Mapping[str, Any]) -> Architecture:
    check_sizes(config)
    nested = config.get("text_config")
    # Text alone may stand at the top. Source: Glm5NextConfig.__post_init__
    own = config if nested is None else part(config, "text_config", model_types=("glm5_next_text",))
    text = with_defaults(with_aliases(own, {"num_local_experts": "n_routed_experts"}), TEXT)
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", False)
    dtype, sizes = whole_dtype(config), _delta_sizes(text)
    decoder, types, full = _read_decoder(text, dtype)
    model = Module(
        name="model",
        class_name="Glm5NextModel",
        children=(_tower(_read_vision(config), dtype), _language_model(decoder, sizes, types, full)),
    )
    return causal_lm(
        config,
        text,
        model,
        _kept(decoder, sizes, types, full),
        table="language_model.embed_tokens",
        persistent=(SCORE_BIAS,),
        stored_form=_stored,
        unloaded=(r"layers\.45\.", r"layers\.\d+\.shared_head\."),
    )


def _read_decoder(text: Mapping[str, Any], dtype: DType) -> tuple[Decoder, list[str], list[bool]]:
    """The sizes, each layer's type, and whether it has an index of its own. Source: Glm5NextTextConfig.__post_init__."""
    layers = integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    if text["qk_rope_head_dim"] != 0:
        raise UnsupportedError("config_key_unsupported", key="qk_rope_head_dim", found=shown(text["qk_rope_head_dim"]))
    if integer(text, "index_topk") % integer(text, "index_kpool"):
        raise UnsupportedError("config_key_unsupported", key="index_topk", found=shown(text["index_topk"]))
    integer(text, "q_lora_rank")  # the index reads the compressed queries
    types = text.get("layer_types")
    if types is None:
        types = [TYPES[index % 4 == 3] for index in range(layers)]
    if isinstance(types, list):
        types = [TYPES[1] if kind == "full_attention" else kind for kind in types]
    check_layer_types(types, layers, kinds=TYPES)
    decoder = Decoder(
        prefix=PREFIX,
        text=text,
        dtype=dtype,
        hidden=integer(text, "hidden_size"),
        layers=layers,
        query_heads=integer(text, "num_attention_heads"),
        kv_heads=read_latent_heads(text),
        head_dim=0,
        eps=text["rms_norm_eps"],
    )
    full = read_indexers(text, layers)
    for index, kind in enumerate(types):  # an index is handed on to the next layer alone
        if kind == TYPES[1] and not full[index] and (index == 0 or types[index - 1] != kind):
            raise UnsupportedError("config_key_unsupported", key="indexer_types", found=f"shared ({index})")
    return decoder, types, full


def _delta_sizes(text: Mapping[str, Any]) -> DeltaSizes:
    """`linear_attn_config`, where there is one, counts before the keys of their own."""
    nested = read_object(text, "linear_attn_config")
    names = {
        "linear_num_heads": "num_heads",
        "linear_head_dim": "head_dim",
        "linear_conv_kernel_dim": "short_conv_kernel_size",
    }
    heads, head_dim, kernel = (
        integer(nested, name) if name in nested else integer(text, key) for key, name in names.items()
    )
    return DeltaSizes(heads=heads, head_dim=head_dim, kernel=kernel)


def _language_model(decoder: Decoder, sizes: DeltaSizes, types: list[str], full: list[bool]) -> Module:
    text, layers = decoder.text, decoder.layers
    experts = integer(text, "n_routed_experts")
    sparse = read_sparse_layers({"dense": 3, **text}, layers, experts, dense_first="dense")
    kinds = list(zip(types, full, sparse, strict=True))
    built = {kind: _layer(decoder, sizes, *kind) for kind in dict.fromkeys(kinds)}
    head = Module(name="hc_head", class_name=f"{PREFIX}HyperHead")
    model = decoder.model([built[kind] for kind in kinds])
    return replace(model, name="language_model", children=(*model.children[:-1], head))


def _layer(decoder: Decoder, sizes: DeltaSizes, kind: str, has_index: bool, has_experts: bool) -> Module:
    text, dtype = decoder.text, decoder.dtype
    if kind == "linear_attention":
        attention = delta_attention(decoder, sizes, class_name="LinearAttention", whole=WHOLE, low_rank=True)
    else:
        extra = (_pooled_indexer(text, dtype),) if has_index else ()
        attention = latent_attention(PREFIX, text, dtype, extra=extra, norm_eps=decoder.eps)
    mlp = mixture(decoder, score_bias=WHOLE) if has_experts else decoder.mlp()
    layer = decoder.prenorm_layer(attention, _without_activation(mlp))
    return replace(layer, children=(*layer.children, *(_streams(decoder, name) for name in ("attn_hc", "ffn_hc"))))


def _without_activation(mlp: Module) -> Module:
    """The experts' gate is a function of its own."""
    return replace(
        mlp,
        children=tuple(replace(child, children=()) if child.name == "experts" else child for child in mlp.children),
    )


def _pooled_indexer(text: Mapping[str, Any], dtype: DType) -> Module:
    """DeepSeek's index over pools of `index_kpool` tokens, each a weighted mean of its tokens' keys."""
    pool, width = integer(text, "index_kpool"), integer(text, "index_head_dim")
    return replace(
        indexer(PREFIX, text, dtype, weights=dtype),
        tensors=(
            Tensor("index_kpool_compress_ape", (pool, width), dtype),
            Tensor("index_kpool_compress_gate", (width, integer(text, "hidden_size")), dtype),
        ),
    )


def _streams(decoder: Decoder, name: str) -> Module:
    """What a block reads of the residual streams and writes back. Source: Glm5NextTextHyperConnection."""
    streams = integer(decoder.text, "hc_mult")
    weights = (2 + streams) * streams
    return Module(
        name=name,
        class_name=f"{PREFIX}HyperConnection",
        tensors=(
            Tensor("fn", (weights, streams * decoder.hidden), decoder.dtype),
            Tensor("base", (weights,), WHOLE),
            Tensor("scale", (3,), WHOLE),
        ),
        children=(Module(name="input_norm", class_name=f"{PREFIX}UnweightedRMSNorm"),),
    )


def _kept(decoder: Decoder, sizes: DeltaSizes, types: list[str], full: list[bool]) -> list[KeptLayer]:
    """Latent layers with an index keep a key, its gate's scores and whether the token counts. Source: Glm5NextTextIndexer."""
    rank, width = (integer(decoder.text, key) for key in ("kv_lora_rank", "index_head_dim"))
    return [
        keeps_latent(index, rank, 0, decoder.dtype, index_dim=2 * width + 1 if full[index] else 0, kind="indexed")
        if kind == "indexed_attention"
        else keeps_states(index, "recurrent", delta_states(sizes, decoder.dtype))
        for index, kind in enumerate(types)
    ]


# --- the tower


def _read_vision(config: Mapping[str, Any]) -> dict[str, Any]:
    nested = config.get("vision_config")
    vision = {} if nested is None else part(config, "vision_config", model_types=("glm5_next_vision",))
    return {**VISION, **with_aliases(vision, {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"})}


def _tower(vision: Mapping[str, Any], dtype: DType) -> Module:
    hidden, heads, eps = integer(vision, "hidden_size"), integer(vision, "num_heads"), vision["rms_norm_eps"]
    if hidden % heads:
        raise MalformedError("config_vision_heads_do_not_divide", hidden=hidden, heads=heads)
    side, output, act = integer(vision, "patch_size"), integer(vision, "out_hidden_size"), vision["hidden_act"]
    frames, channels, merged = (
        integer(vision, key) for key in ("temporal_patch_size", "in_channels", "spatial_merge_size")
    )
    bias = flag(vision, "attention_bias", default=True)
    head_dim = hidden // heads

    def rms(name: str, width: int) -> Module:
        return norm(name, "Glm5NextRMSNorm", width, dtype, eps=eps)

    block = Module(
        name="0",
        class_name="Glm5NextVisionBlock",
        children=(
            rms("norm1", hidden),
            rms("norm2", hidden),
            Module(
                name="attn",
                class_name="Glm5NextVisionAttention",
                children=(
                    linear("qkv", hidden, 3 * hidden, dtype, bias=bias),
                    linear("proj", hidden, hidden, dtype, bias=bias),
                    rms("q_norm", head_dim),
                    rms("k_norm", head_dim),
                ),
            ),
            gated_mlp("mlp", "Glm5NextVisionMLP", hidden, integer(vision, "intermediate_size"), act, dtype, bias=bias),
        ),
    )
    merger = patch_merger("Glm5Next", output, integer(vision, "projection_intermediate_size"), act, dtype)
    return Module(
        name="visual",
        class_name="Glm5NextVisionModel",
        children=(
            Module(
                name="patch_embed",
                class_name="Glm5NextVisionPatchEmbed",
                children=(patch_convolution("proj", "Conv3d", channels, hidden, (frames, side, side), dtype),),
            ),
            rotary("rotary_pos_emb", "Glm5NextVisionRotaryEmbedding", head_dim // 2),
            layer_list("blocks", [block] * integer(vision, "depth")),
            merger,
            patch_convolution("downsample", "Conv2d", hidden, output, (merged, merged), dtype),
            rms("post_layernorm", hidden),
        ),
    )


# --- names on disk. Source: transformers 5.23, conversion_mapping ("glm5_next")

_experts = stored_by_expert("mlp", EXPERTS)
STREAMS = {
    f".{block}_hc.{part}": f".hc_{block}_{part}" for block in ("attn", "ffn") for part in ("fn", "base", "scale")
}


def _stored(tensor: Tensor) -> tuple[Tensor, ...]:
    name = tensor.name
    if ".self_attn." in name:
        return stored_attention(tensor, name.replace(".forget_gate.", "."))
    for built, stored in STREAMS.items():
        if name.endswith(built):
            return (replace(tensor, name=name.removesuffix(built) + stored),)
    return _experts(tensor)
