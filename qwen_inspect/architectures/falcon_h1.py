"""Falcon-H1: in each layer attention and Mamba-2 side by side.

Source: transformers 5.23, models/falcon_h1; Falcon-H1 (arXiv 2507.22448).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..typed import Any
from .blocks import rotary
from .design import Architecture
from .outline import (
    causal_lm,
    embedding,
    gated_mlp,
    keeps_states,
    layer_list,
    linear,
    norm,
    read_heads,
    read_padding,
    whole_dtype,
    with_defaults,
)
from .reading import flag, integer, read_head_dim, shown
from .recurrent import Mamba2, check_groups, identity, mamba2_mixer

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 128000,
    "tie_word_embeddings": False,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "max_position_embeddings": 8192,
    "mamba_d_ssm": 1024,
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "mamba_rms_norm": False,
    "projectors_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_defaults(config, DEFAULTS), whole_dtype(config)
    for key in ("layer_types", "layers_block_type"):  # cannot be set
        if key in text:
            raise UnsupportedError("config_key_unsupported", key=key, found=shown(text[key]))
    hidden, eps = integer(text, "hidden_size"), text["rms_norm_eps"]
    query_heads, kv_heads = read_heads(text)
    head_dim = read_head_dim(text)
    sizes, bias = _mamba(text), flag(text, "attention_bias", default=False)
    layer = Module(
        name="0",
        class_name="FalconH1DecoderLayer",
        children=(
            gated_mlp(
                "feed_forward",
                "FalconH1MLP",
                hidden,
                integer(text, "intermediate_size"),
                text["hidden_act"],
                dtype,
                bias=flag(text, "mlp_bias", default=False),
            ),
            _recurrent(text, sizes, dtype),
            Module(
                name="self_attn",
                class_name="FalconH1Attention",
                children=(
                    linear("q_proj", hidden, query_heads * head_dim, dtype, bias=bias),
                    linear("k_proj", hidden, kv_heads * head_dim, dtype, bias=bias),
                    linear("v_proj", hidden, kv_heads * head_dim, dtype, bias=bias),
                    linear("o_proj", query_heads * head_dim, hidden, dtype, bias=bias),
                ),
            ),
            norm("input_layernorm", "FalconH1RMSNorm", hidden, dtype, eps=eps),
            norm("pre_ff_layernorm", "FalconH1RMSNorm", hidden, dtype, eps=eps),
        ),
    )
    layers = integer(text, "num_hidden_layers")
    model = Module(
        name="model",
        class_name="FalconH1Model",
        children=(
            embedding("embed_tokens", integer(text, "vocab_size"), hidden, dtype, padding=read_padding(text)),
            layer_list("layers", [layer] * layers),
            norm("final_layernorm", "FalconH1RMSNorm", hidden, dtype, eps=eps),
            rotary("rotary_emb", "FalconH1RotaryEmbedding", head_dim),
        ),
    )
    per_token = 2 * kv_heads * head_dim * dtype.bits // 8
    states = sizes.states_bytes(dtype)
    kept = [keeps_states(index, "hybrid", states, per_token=per_token) for index in range(layers)]
    return causal_lm(config, text, model, kept)


def _mamba(text: Mapping[str, Any]) -> Mamba2:
    """Its channels are `mamba_d_ssm`, or those of the expansion if that is null. Source: FalconH1Config."""
    heads = integer(text, "mamba_n_heads")
    if text["mamba_d_ssm"] is None:
        inner = integer(text, "mamba_expand") * integer(text, "hidden_size")
    else:
        inner = integer(text, "mamba_d_ssm")
    head_dim = inner // heads if text["mamba_d_head"] == "auto" else integer(text, "mamba_d_head")
    if heads * head_dim != inner:
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


def _recurrent(text: Mapping[str, Any], sizes: Mamba2, dtype: DType) -> Module:
    gated = Module(name="norm", class_name="FalconH1RMSNormGated", tensors=(Tensor("weight", (sizes.inner,), dtype),))
    return mamba2_mixer(
        "mamba",
        "FalconH1Mixer",
        integer(text, "hidden_size"),
        sizes,
        text["hidden_act"],
        dtype,
        norm=gated if flag(text, "mamba_rms_norm", default=False) else identity("norm"),
        conv_bias=flag(text, "mamba_conv_bias", default=False),
        in_bias=flag(text, "mamba_proj_bias", default=False),
        out_bias=flag(text, "projectors_bias", default=False),
        # A factor for each output of in_proj, not in files. Source: compute_mup_vector
        buffers=(Tensor("mup_vector", (1, 1, sizes.inner + sizes.channels + sizes.heads), dtype),),
    )
