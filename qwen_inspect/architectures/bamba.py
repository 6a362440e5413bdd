"""Bamba and Jamba: state space layers with attention on some layers; Jamba has Mamba 1 and, on some layers, experts.

Source: transformers 5.23, models/{bamba,jamba}; Jamba (arXiv 2403.19887).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint import Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .decoders import Decoder, read_decoder
from .design import Architecture
from .outline import (
    causal_lm,
    keeps_heads,
    keeps_states,
    layer_list,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .reading import flag, integer, shown
from .recurrent import (
    Mamba1,
    Mamba2,
    check_groups,
    mamba1_mixer,
    mamba2_mixer,
    time_step_rank,
)
from .sparse import read_routed, sparse_block, stored_by_expert

DEFAULTS: Mapping[str, Any] = {
    "tie_word_embeddings": False,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "pad_token_id": 0,
    "max_position_embeddings": 262144,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}
BAMBA: Mapping[str, Any] = {
    **DEFAULTS,
    "vocab_size": 128000,
    "rms_norm_eps": 1e-5,
    "attn_layer_indices": None,
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "attention_bias": False,
    "mlp_bias": False,
}
JAMBA: Mapping[str, Any] = {
    **DEFAULTS,
    "vocab_size": 65536,
    "rms_norm_eps": 1e-6,
    "num_experts_per_tok": 2,
    "num_experts": 16,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "mamba_d_state": 16,
    "mamba_dt_rank": "auto",
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    return _bamba(config) if config["model_type"] == "bamba" else _jamba(config)


def _bamba(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_defaults(config, BAMBA), whole_dtype(config)
    decoder = read_decoder(text, dtype, "Bamba")
    full = text["attn_layer_indices"] or []
    if not isinstance(full, list) or not all(type(index) is int for index in full):
        raise UnsupportedError("config_key_unsupported", key="attn_layer_indices", found=shown(full))
    is_full = [index in full for index in range(decoder.layers)]
    sizes = _mamba2(text, decoder.hidden)
    bias = flag(text, "mamba_proj_bias", default=False)
    mixer = mamba2_mixer(
        "mamba",
        "BambaMixer",
        decoder.hidden,
        sizes,
        text["hidden_act"],
        dtype,
        norm=Module(name="norm", class_name="BambaRMSNormGated", tensors=(Tensor("weight", (sizes.inner,), dtype),)),
        conv_bias=flag(text, "mamba_conv_bias", default=False),
        in_bias=bias,
        out_bias=bias,
    )
    attention = decoder.attention(bias=flag(text, "attention_bias", default=False))
    mlp = decoder.mlp("feed_forward", bias=flag(text, "mlp_bias", default=False))
    norms = (decoder.norm("input_layernorm"), decoder.norm("pre_ff_layernorm"))
    layers = [decoder.layer(mlp, *norms, attention if full else mixer) for full in is_full]
    # Half of each head turns whatever the key says. Source: BambaConfig.__post_init__
    halved = replace(decoder, text={**text, "partial_rotary_factor": 0.5})
    return _hybrid(config, decoder, is_full, layers, sizes.states_bytes(dtype), halved.rotary(partial=True))


def _jamba(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_aliases(with_defaults(config, JAMBA), {"num_local_experts": "num_experts"}), whole_dtype(config)
    decoder = read_decoder(text, dtype, "Jamba")
    hidden = decoder.hidden
    sizes = Mamba1(
        inner=integer(text, "mamba_expand") * hidden,
        state=integer(text, "mamba_d_state"),
        kernel=integer(text, "mamba_d_conv"),
        rank=integer(time_step_rank(text, "mamba_dt_rank", hidden), "mamba_dt_rank"),
    )
    widths = {"dt_layernorm": sizes.rank, "b_layernorm": sizes.state, "c_layernorm": sizes.state}
    mixer = mamba1_mixer(
        "mamba",
        "JambaMambaMixer",
        hidden,
        sizes,
        text["hidden_act"],
        dtype,
        bias=flag(text, "mamba_proj_bias", default=False),
        conv_bias=flag(text, "mamba_conv_bias", default=False),
        norms=tuple(decoder.norm(name, width) for name, width in widths.items()),
    )
    attention, norms = decoder.attention(), (decoder.norm("input_layernorm"), decoder.norm("pre_ff_layernorm"))
    is_full = _periodic(text, "attn_layer", decoder.layers)
    routed = read_routed(text, "num_experts", layers=decoder.layers)
    count = routed[1]
    is_sparse = [chosen and count > 1 for chosen in _periodic(text, "expert_layer", decoder.layers)]
    dense = decoder.mlp("feed_forward")
    sparse = sparse_block(decoder, count, name="feed_forward", class_name="SparseMoeBlock", router="router")
    layers = [
        Module(
            name="0",
            class_name="JambaAttentionDecoderLayer" if full else "JambaMambaDecoderLayer",
            children=(attention if full else mixer, sparse if chosen else dense, *norms),
        )
        for full, chosen in zip(is_full, is_sparse, strict=True)
    ]
    return _hybrid(
        config,
        decoder,
        is_full,
        layers,
        sizes.states_bytes(dtype),
        routed=routed,
        stored_form=stored_by_expert("feed_forward", ("gate_proj", "up_proj", "down_proj"), built="feed_forward"),
    )


def _hybrid(
    config: Mapping[str, Any],
    decoder: Decoder,
    is_full: Sequence[bool],
    layers: Sequence[Module],
    states_bytes: tuple[int, ...],
    *tables: Module,
    **options: Any,
) -> Architecture:
    """is_full: of each layer, whether it has attention. tables: the rotary table, if the class has one."""
    if not any(is_full):
        raise UnsupportedError("config_all_linear")
    model = Module(
        name="model",
        class_name=f"{decoder.prefix}Model",
        children=(decoder.table(), layer_list("layers", layers), decoder.norm("final_layernorm"), *tables),
    )
    kept = [
        keeps_heads(index, decoder.query_heads, decoder.kv_heads, decoder.head_dim, decoder.dtype)
        if full
        else keeps_states(index, "recurrent", states_bytes)
        for index, full in enumerate(is_full)
    ]
    return causal_lm(config, decoder.text, model, kept, **options)


def _mamba2(text: Mapping[str, Any], hidden: int) -> Mamba2:
    heads, inner = integer(text, "mamba_n_heads"), integer(text, "mamba_expand") * hidden
    head_dim = inner // heads if text["mamba_d_head"] == "auto" else integer(text, "mamba_d_head")
    if heads * head_dim != inner:  # Source: BambaConfig.validate_architecture
        raise MalformedError(
            "config_out_of_range", key="mamba_n_heads x mamba_d_head", found=heads * head_dim, least=inner, most=inner
        )
    sizes = Mamba2(
        heads=heads,
        head_dim=head_dim,
        groups=integer(text, "mamba_n_groups"),
        state=integer(text, "mamba_d_state"),
        kernel=integer(text, "mamba_d_conv"),
    )
    check_groups(sizes, "mamba_n_groups")
    return sizes


def _periodic(text: Mapping[str, Any], name: str, layers: int) -> list[bool]:
    """Of each layer, whether it is the one at the offset within its period."""
    period = integer(text, f"{name}_period")
    offset = integer(text, f"{name}_offset", at_least=0, at_most=period - 1)
    return [index % period == offset for index in range(layers)]
