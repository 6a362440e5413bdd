"""Phi-3, Phi-3.5 and Phi-4: q, k and v in one matrix, gate and up in one; Phi-1 and 2: attention and MLP side by side.

Source: transformers 5.23, models/phi3, phi; Phi-4-Mini (arXiv 2503.01743).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UnsupportedError
from ..spec import Module
from ..typed import Any
from .blocks import linear
from .decoders import Decoder, read_decoder
from .design import Architecture
from .outline import (
    activation,
    causal_lm,
    dropout,
    layer_list,
    layer_norm,
    read_rope,
    read_spans,
    whole_dtype,
    with_defaults,
)
from .reading import flag, integer, number, shown

PHI: Mapping[str, Any] = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "qk_layernorm": False,
    "pad_token_id": None,
    "partial_rotary_factor": 0.5,
}
PHI3: Mapping[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "resid_pdrop": 0.0,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "pad_token_id": 32000,
    "sliding_window": None,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    if config["model_type"] == "phi":
        return _phi(config)
    text = with_defaults(config, PHI3)
    _check_rope_type(text, known=("default", "longrope", "yarn"))  # Phi3Config reads yarn as longrope
    decoder = read_decoder(text, whole_dtype(config), "Phi3")
    layer = decoder.layer(
        _joint_attention(decoder),
        decoder.joint_mlp(),
        decoder.norm("input_layernorm"),
        decoder.norm("post_attention_layernorm"),
        dropout("resid_attn_dropout", text["resid_pdrop"]),
        dropout("resid_mlp_dropout", text["resid_pdrop"]),
    )
    model = decoder.model(layer, rotary_table=decoder.rotary(partial=True))
    return causal_lm(config, text, model, decoder.kept(read_spans(text, decoder.layers)))


def _check_rope_type(text: Mapping[str, Any], *, known: tuple[str, ...]) -> None:
    kind, _ = read_rope(text)
    if kind not in known:
        raise UnsupportedError("rope_type_unsupported", found=shown(kind), known=", ".join(known))


def _joint_attention(decoder: Decoder) -> Module:
    rows, columns = decoder.query_heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    return Module(
        name="self_attn",
        class_name="Phi3Attention",
        children=(
            linear("o_proj", rows, decoder.hidden, decoder.dtype),
            linear("qkv_proj", decoder.hidden, rows + 2 * columns, decoder.dtype),
        ),
    )


def _phi(config: Mapping[str, Any]) -> Architecture:
    text = with_defaults(config, PHI)
    number(text, "partial_rotary_factor", default=0.5)  # no null
    _check_rope_type(text, known=("default", "linear", "dynamic", "yarn", "longrope", "llama3"))
    decoder = read_decoder(text, whole_dtype(config), "Phi", eps="layer_norm_eps")
    hidden, dtype, width = decoder.hidden, decoder.dtype, integer(text, "intermediate_size")
    norms = ("q_layernorm", "k_layernorm") if flag(text, "qk_layernorm", default=False) else ()
    if norms and decoder.query_heads * decoder.head_dim != hidden:  # the norms' width is hidden_size / heads
        raise UnsupportedError("config_key_unsupported", key="head_dim", found=shown(decoder.head_dim))
    mlp = Module(
        name="mlp",
        class_name="PhiMLP",
        children=(
            activation("activation_fn", text["hidden_act"]),
            linear("fc1", hidden, width, dtype, bias=True),
            linear("fc2", width, hidden, dtype, bias=True),
        ),
    )
    layer = decoder.layer(
        decoder.attention(
            *[layer_norm(name, decoder.head_dim, dtype, eps=decoder.eps) for name in norms], bias=True, output="dense"
        ),
        mlp,
        layer_norm("input_layernorm", hidden, dtype, eps=decoder.eps),
        dropout("resid_dropout", text["resid_pdrop"]),
    )
    model = Module(
        name="model",
        class_name="PhiModel",
        children=(
            decoder.table(),
            layer_list("layers", [layer] * decoder.layers),
            decoder.rotary(partial=True),
            dropout("embed_dropout", text["embd_pdrop"]),
            layer_norm("final_layernorm", hidden, dtype, eps=decoder.eps),
        ),
    )
    return causal_lm(config, text, model, decoder.kept(read_spans(text, decoder.layers)), head_bias=True)
