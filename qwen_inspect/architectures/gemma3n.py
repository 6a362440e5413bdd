"""Gemma 3n's decoder: several copies of the hidden states (AltUp), inputs for each layer, last layers that read earlier caches.

The whole model, with its towers from another library, is built by transformers. Source: transformers 5.23, models/gemma3n.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError
from ..spec import Module
from ..typed import Any
from .blocks import linear
from .design import Architecture
from .gemma import kept_layers, scaled_embedding, sharing_layers, unloaded_parts
from .outline import (
    activation,
    causal_lm,
    check_width,
    frequencies,
    gated_mlp,
    keeps_nothing,
    layer_list,
    norm,
    read_heads,
    read_padding,
    whole_dtype,
    with_defaults,
)
from .reading import check_layer_types, flag, integer

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262_400,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "sliding_window": 512,
    "layer_types": None,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "altup_num_inputs": 4,
    "num_kv_shared_layers": 15,
    "laurel_rank": 64,
    "activation_sparsity_pattern": None,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_defaults(config, DEFAULTS), whole_dtype(config)
    check_width(text)
    layers = integer(text, "num_hidden_layers")
    if (types := text["layer_types"]) is None:
        types = ["sliding_attention" if (index + 1) % 5 else "full_attention" for index in range(layers)]
    check_layer_types(types, layers, kinds=("full_attention", "sliding_attention"))
    _each_layer(text, "activation_sparsity_pattern", layers)
    shares = sharing_layers(text, types)
    return causal_lm(
        config,
        text,
        _decoder(text, types, shares, dtype),
        [
            keeps_nothing(index, "shared") if shared else layer
            for index, (layer, shared) in enumerate(
                zip(kept_layers({**text, "layer_types": types}, dtype), shares, strict=True)
            )
        ],
        unloaded=unloaded_parts(shares),
    )


def _each_layer(text: Mapping[str, Any], key: str, layers: int) -> list[Any]:
    """A value for each layer, from a list or from one value for all. Source: Gemma3nTextConfig.__post_init__."""
    values = text[key]
    if not isinstance(values, list):
        return [values] * layers
    if len(values) != layers:
        raise MalformedError("gguf_per_layer", key=key, layers=layers, found=len(values))
    return values


def _decoder(text: Mapping[str, Any], types: list[str], shares: list[bool], dtype: DType) -> Module:
    hidden, layers, inputs = integer(text, "hidden_size"), len(types), integer(text, "hidden_size_per_layer_input")
    copies = layer_list("", [linear("0", hidden, hidden, dtype)] * (integer(text, "altup_num_inputs") - 1)).children
    widths = [
        integer({"intermediate_size": width}, "intermediate_size")
        for width in _each_layer(text, "intermediate_size", layers)
    ]
    layer_of = {kind: _layer(text, *kind, dtype) for kind in set(zip(widths, shares, strict=True))}
    rows = integer(text, "vocab_size_per_layer_input")
    return Module(
        name="model",
        class_name="Gemma3nTextModel",
        buffers=(Tensor("per_layer_projection_scale", (), dtype), Tensor("per_layer_input_scale", (), dtype)),
        children=(
            _table("embed_tokens", integer(text, "vocab_size"), hidden, text, dtype),
            layer_list("layers", [layer_of[kind] for kind in zip(widths, shares, strict=True)]),
            _norm("norm", hidden, dtype),
            Module(
                name="rotary_emb",
                class_name="Gemma3nRotaryEmbedding",
                buffers=tuple(
                    buffer
                    for kind in sorted(set(types))
                    for buffer in frequencies(integer(text, "head_dim"), prefix=f"{kind}_")
                ),
            ),
            _table("embed_tokens_per_layer", rows, layers * inputs, text, dtype),
            linear("per_layer_model_projection", hidden, layers * inputs, dtype),
            _norm("per_layer_projection_norm", inputs, dtype),
            Module(name="altup_projections", class_name="ModuleList", children=copies),
            Module(name="altup_unembed_projections", class_name="ModuleList", children=copies),
        ),
    )


def _layer(text: Mapping[str, Any], width: int, shares: bool, dtype: DType) -> Module:
    hidden, act, inputs = (
        integer(text, "hidden_size"),
        text["hidden_activation"],
        integer(text, "hidden_size_per_layer_input"),
    )
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    return Module(
        name="0",
        class_name="Gemma3nTextDecoderLayer",
        children=(
            _attention(text, shares, dtype),
            gated_mlp("mlp", "Gemma3nTextMLP", hidden, width, act, dtype),
            *(_norm(name, hidden, dtype) for name in norms),
            activation("act_fn", act),
            _alternating_updates(hidden, integer(text, "altup_num_inputs"), dtype),
            _laurel(hidden, integer(text, "laurel_rank"), dtype),
            linear("per_layer_input_gate", hidden, inputs, dtype),
            linear("per_layer_projection", inputs, hidden, dtype),
            _norm("post_per_layer_input_norm", hidden, dtype),
        ),
    )


def _attention(text: Mapping[str, Any], shares: bool, dtype: DType) -> Module:
    hidden, bias = integer(text, "hidden_size"), flag(text, "attention_bias", default=False)
    (query_heads, kv_heads), head_dim = read_heads(text), integer(text, "head_dim")
    rows, columns = query_heads * head_dim, kv_heads * head_dim
    own = (
        linear("k_proj", hidden, columns, dtype, bias=bias),
        linear("v_proj", hidden, columns, dtype, bias=bias),
        _norm("k_norm", head_dim, dtype),
        Module(name="v_norm", class_name="Gemma3nRMSNorm"),
    )
    return Module(
        name="self_attn",
        class_name="Gemma3nTextAttention",
        children=(
            linear("q_proj", hidden, rows, dtype, bias=bias),
            _norm("q_norm", head_dim, dtype),
            *(() if shares else own),
            linear("o_proj", rows, hidden, dtype, bias=bias),
        ),
    )


def _alternating_updates(hidden: int, copies: int, dtype: DType) -> Module:
    """Source: AltUp (arXiv 2301.13310)."""
    return Module(
        name="altup",
        class_name="Gemma3nTextAltUp",
        tensors=(Tensor("correct_output_scale", (hidden,), dtype),),
        buffers=(Tensor("router_input_scale", (), dtype),),
        children=(
            linear("correction_coefs", copies, copies, dtype),
            linear("prediction_coefs", copies, copies**2, dtype),
            linear("modality_router", hidden, copies, dtype),
            _norm("router_norm", hidden, dtype),
        ),
    )


def _laurel(hidden: int, rank: int, dtype: DType) -> Module:
    """Source: LAuReL (arXiv 2411.07501)."""
    return Module(
        name="laurel",
        class_name="Gemma3nTextLaurelBlock",
        children=(
            linear("linear_left", hidden, rank, dtype),
            linear("linear_right", rank, hidden, dtype),
            _norm("post_laurel_norm", hidden, dtype),
        ),
    )


def _norm(name: str, width: int, dtype: DType) -> Module:
    return norm(name, "Gemma3nRMSNorm", width, dtype, arguments="")


def _table(name: str, rows: int, width: int, text: Mapping[str, Any], dtype: DType) -> Module:
    padding = read_padding({**text, "vocab_size": rows})
    return scaled_embedding(name, rows, width, dtype, padding, prefix="Gemma3n")
