"""Granite 3: Llama's decoder with scaled residuals; GraniteMoE: with experts, and an MLP beside them; Granite 4: with Mamba-2.

Source: transformers 5.23, models/granite, granitemoe, granitemoeshared, granitemoehybrid.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Tensor
from ..errors import UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .blocks import linear
from .decoders import Decoder, read_decoder
from .design import Architecture, KeptLayer
from .outline import (
    activation,
    causal_lm,
    keeps_states,
    norm,
    read_spans,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .reading import MOST_HEADS, check_layer_types, flag, integer, shown
from .recurrent import Mamba2, check_groups, mamba2_mixer, renamed_layer_types
from .sparse import read_routed, sparse_block

_GRANITE: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
_GRANITEMOE: Mapping[str, Any] = {**_GRANITE, "num_local_experts": 8, "num_experts_per_tok": 2}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "granite": {**_GRANITE, "mlp_bias": False},
    "granitemoe": _GRANITEMOE,
    "granitemoeshared": {**_GRANITEMOE, "shared_intermediate_size": 0},
    "granitemoehybrid": {
        **_GRANITEMOE,
        "shared_intermediate_size": 1024,
        "position_embedding_type": None,
        "layer_types": None,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_head": "auto",
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    },
}
ALIASES: Mapping[str, Mapping[str, str]] = {"granitemoehybrid": {"layers_block_type": "layer_types"}}
PREFIXES = {
    "granite": "Granite",
    "granitemoe": "GraniteMoe",
    "granitemoeshared": "GraniteMoeShared",
    "granitemoehybrid": "GraniteMoeHybrid",
}
STORED = {
    "block_sparse_moe.experts.gate_up_proj": "block_sparse_moe.input_linear.weight",
    "block_sparse_moe.experts.down_proj": "block_sparse_moe.output_linear.weight",
    "block_sparse_moe.router.weight": "block_sparse_moe.router.layer.weight",
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    model_type = str(config["model_type"])
    text = with_defaults(with_aliases(config, ALIASES.get(model_type, {})), DEFAULTS[model_type])
    decoder = read_decoder(text, whole_dtype(config), PREFIXES[model_type])
    attention = decoder.attention(bias=flag(text, "attention_bias", default=False))
    if model_type == "granite":
        layer = decoder.prenorm_layer(attention, decoder.mlp(bias=flag(text, "mlp_bias", default=False)))
        return causal_lm(config, text, decoder.model(layer), decoder.kept(read_spans(text, decoder.layers)))
    hybrid = model_type == "granitemoehybrid"
    routed = None
    if not hybrid or text["num_local_experts"] != 0:
        routed = read_routed(text, "num_local_experts", layers=decoder.layers)
    parts = _behind_attention(decoder, routed)
    if hybrid:
        model, kept = _hybrid(decoder, attention, parts)
    else:
        model = decoder.model(decoder.layer(attention, *parts))
        kept = decoder.kept(read_spans(text, decoder.layers))
    return causal_lm(config, text, model, kept, routed=routed, stored_form=stored_form)


def _behind_attention(decoder: Decoder, routed: tuple[int, int] | None) -> list[Module]:
    """The norms, the experts if there are some, and the MLP that all tokens share, if there is one."""
    parts = [decoder.norm(f"{place}_layernorm") for place in ("input", "post_attention")]
    if routed is not None:
        parts.append(sparse_block(decoder, routed[1], name="block_sparse_moe", class_name="MoE", router="router"))
    width = integer({"shared_intermediate_size": 0, **decoder.text}, "shared_intermediate_size", at_least=0)
    if decoder.prefix == "GraniteMoeHybrid" or (decoder.prefix == "GraniteMoeShared" and width):
        shared = Module(
            name="shared_mlp",
            class_name=f"{decoder.prefix}MLP",
            children=(
                activation("activation", decoder.text["hidden_act"]),
                linear("input_linear", decoder.hidden, 2 * width, decoder.dtype),
                linear("output_linear", width, decoder.hidden, decoder.dtype),
            ),
        )
        parts.append(shared)
    return parts


def _hybrid(decoder: Decoder, attention: Module, parts: list[Module]) -> tuple[Module, list[KeptLayer]]:
    """Layers of Mamba-2 or of attention, which has no rotary table unless the configuration asks for one."""
    text, sizes = decoder.text, _read_mamba(decoder)
    types = renamed_layer_types(text["layer_types"])
    if types is None:
        types = ["linear_attention"] * decoder.layers
    check_layer_types(types, decoder.layers, kinds=("linear_attention", "full_attention"))
    assert isinstance(types, list)
    if "full_attention" not in types:
        raise UnsupportedError("config_all_linear")
    gated_norm = norm("norm", "GraniteMoeHybridRMSNormGated", sizes.inner, decoder.dtype, arguments="")
    bias = flag(text, "mamba_proj_bias", default=False)
    mamba = mamba2_mixer(
        "mamba",
        "GraniteMoeHybridMambaLayer",
        decoder.hidden,
        sizes,
        text["hidden_act"],
        decoder.dtype,
        norm=gated_norm,
        conv_bias=flag(text, "mamba_conv_bias", default=False),
        in_bias=bias,
        out_bias=bias,
    )
    built = {"linear_attention": decoder.layer(*parts, mamba), "full_attention": decoder.layer(*parts, attention)}
    model = decoder.model([built[kind] for kind in types])
    if text["position_embedding_type"] != "rope":
        model = replace(model, children=model.children[:-1])
    full = decoder.kept([("full", None)] * decoder.layers)
    states = sizes.states_bytes(decoder.dtype)
    return model, [
        full[index] if kind == "full_attention" else keeps_states(index, "recurrent", states)
        for index, kind in enumerate(types)
    ]


def _read_mamba(decoder: Decoder) -> Mamba2:
    """Source: GraniteMoeHybridConfig.validate_architecture."""
    text, heads = decoder.text, integer(decoder.text, "mamba_n_heads", at_most=MOST_HEADS)
    inner = integer(text, "mamba_expand") * decoder.hidden
    head_dim = inner // heads if text["mamba_d_head"] == "auto" else integer(text, "mamba_d_head")
    if heads * head_dim != inner:
        raise UnsupportedError("config_key_unsupported", key="mamba_n_heads", found=shown(heads))
    sizes = Mamba2(
        heads=heads,
        head_dim=head_dim,
        groups=integer(text, "mamba_n_groups"),
        state=integer(text, "mamba_d_state"),
        kernel=integer(text, "mamba_d_conv"),
    )
    check_groups(sizes, "mamba_n_groups")
    return sizes


def stored_form(tensor: Tensor) -> tuple[Tensor, ...]:
    """Experts and router under the names of releases. Source: transformers 5.23, conversion_mapping ("granitemoe")."""
    layer, dot, block = tensor.name.partition(".block_sparse_moe.")
    stored = STORED.get(f"block_sparse_moe.{block}") if dot else None
    return (tensor if stored is None else replace(tensor, name=f"{layer}.{stored}"),)
