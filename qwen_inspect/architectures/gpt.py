"""Decoders before Llama: GPT-2, OPT, GPT-NeoX (Pythia), BLOOM, Falcon and MPT, with LayerNorm and an MLP of two matrices.

Source: transformers 5.23, models/{gpt2,opt,gpt_neox,bloom,falcon,mpt}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from .blocks import rotary
from .design import Architecture, KeptLayer
from .outline import (
    activation,
    causal_lm,
    dropout,
    embedding,
    keeps_heads,
    layer_list,
    layer_norm,
    linear,
    read_padding,
    read_spans,
    rotary_dim,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .reading import MOST_LAYERS, flag, integer, optional_integer, shown

GPT2: Mapping[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
GPT2_ALIASES: Mapping[str, str] = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
OPT: Mapping[str, Any] = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "word_embed_proj_dim": None,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "pad_token_id": 1,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}
NEOX: Mapping[str, Any] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "hidden_dropout": 0.0,
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "rotary_pct": 0.25,
}
BLOOM: Mapping[str, Any] = {
    "vocab_size": 250880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "layer_norm_epsilon": 1e-5,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
}
BLOOM_ALIASES: Mapping[str, str] = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
FALCON: Mapping[str, Any] = {
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_ln_in_parallel_attn": None,
    "layer_norm_epsilon": 1e-5,
    "attention_dropout": 0.0,
    "num_kv_heads": None,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "max_position_embeddings": 2048,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "tie_word_embeddings": True,
}
MPT: Mapping[str, Any] = {
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "vocab_size": 50368,
    "layer_norm_epsilon": 1e-5,
    "attn_config": None,
    "tie_word_embeddings": True,
}
MPT_ALIASES: Mapping[str, str] = {
    "num_attention_heads": "n_heads",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    by_type = {"gpt2": _gpt2, "opt": _opt, "gpt_neox": _neox, "bloom": _bloom, "falcon": _falcon, "mpt": _mpt}
    return by_type[config["model_type"]](config)


def _read_heads(text: Mapping[str, Any], hidden: int, key: str = "num_attention_heads") -> tuple[int, int]:
    """(heads, head_dim), which share the hidden size."""
    heads = integer(text, key)
    if hidden % heads:
        raise MalformedError("config_width_not_divisible", hidden=hidden, heads=heads)
    return heads, hidden // heads


def _kept(
    text: Mapping[str, Any], layers: int, heads: int, head_dim: int, dtype: DType, kv_heads: int | None = None
) -> list[KeptLayer]:
    return [
        keeps_heads(index, heads, kv_heads or heads, head_dim, dtype, kind=kind, window=window)
        for index, (kind, window) in enumerate(read_spans(text, layers))
    ]


# --- GPT-2


def _gpt2(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_aliases(with_defaults(config, GPT2), GPT2_ALIASES), whole_dtype(config)
    if flag(text, "add_cross_attention", default=False):
        raise UnsupportedError("config_key_unsupported", key="add_cross_attention", found="True")
    hidden, eps = integer(text, "n_embd"), text["layer_norm_epsilon"]
    layers = integer(text, "n_layer", at_most=MOST_LAYERS)
    heads, head_dim = _read_heads(text, hidden, "n_head")
    inner = optional_integer(text, "n_inner", at_least=1) or 4 * hidden
    residual = text["resid_pdrop"]
    block = Module(
        name="0",
        class_name="GPT2Block",
        children=(
            layer_norm("ln_1", hidden, dtype, eps=eps),
            Module(
                name="attn",
                class_name="GPT2Attention",
                children=(
                    _transposed("c_attn", hidden, 3 * hidden, dtype),
                    _transposed("c_proj", hidden, hidden, dtype),
                    dropout("attn_dropout", text["attn_pdrop"]),
                    dropout("resid_dropout", residual),
                ),
            ),
            layer_norm("ln_2", hidden, dtype, eps=eps),
            Module(
                name="mlp",
                class_name="GPT2MLP",
                children=(
                    _transposed("c_fc", hidden, inner, dtype),
                    _transposed("c_proj", inner, hidden, dtype),
                    activation("act", text["activation_function"]),
                    dropout("dropout", residual),
                ),
            ),
        ),
    )
    model = Module(
        name="transformer",
        class_name="GPT2Model",
        children=(
            embedding("wte", integer(text, "vocab_size"), hidden, dtype),
            embedding("wpe", integer(text, "n_positions"), hidden, dtype),
            dropout("drop", text["embd_pdrop"]),
            layer_list("h", [block] * layers),
            layer_norm("ln_f", hidden, dtype, eps=eps),
        ),
    )
    text["max_position_embeddings"] = text["n_positions"]
    kept = _kept(text, layers, heads, head_dim, dtype)
    return causal_lm(config, text, model, kept, table="wte", unloaded=("attn.bias", "crossattention.bias"))


def _transposed(name: str, inputs: int, outputs: int, dtype: DType) -> Module:
    """transformers' own `Conv1D`: a linear layer whose weight is (inputs, outputs), with a bias."""
    weight, bias = Tensor("weight", (inputs, outputs), dtype), Tensor("bias", (outputs,), dtype)
    return Module(name=name, class_name="Conv1D", tensors=(weight, bias))


# --- OPT


def _opt(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_defaults(config, OPT), whole_dtype(config)
    if text.get("_remove_final_layer_norm"):
        raise UnsupportedError("config_key_unsupported", key="_remove_final_layer_norm", found="True")
    hidden, layers = integer(text, "hidden_size"), integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    width = hidden if text["word_embed_proj_dim"] is None else integer(text, "word_embed_proj_dim")
    heads, head_dim = _read_heads(text, hidden)
    bias, inner = flag(text, "enable_bias", default=False), integer(text, "ffn_dim")
    affine = flag(text, "layer_norm_elementwise_affine", default=False)

    def norm(name: str) -> Module:
        full = layer_norm(name, hidden, dtype, eps="1e-05")
        plain = f"({hidden},), eps=1e-05, elementwise_affine=False, bias=False"
        return full if affine else replace(full, tensors=(), arguments=plain)

    layer = Module(
        name="0",
        class_name="OPTDecoderLayer",
        children=(
            Module(
                name="self_attn",
                class_name="OPTAttention",
                children=tuple(
                    linear(f"{part}_proj", hidden, hidden, dtype, bias=bias) for part in ("k", "v", "q", "out")
                ),
            ),
            activation("activation_fn", text["activation_function"]),
            norm("self_attn_layer_norm"),
            linear("fc1", hidden, inner, dtype, bias=bias),
            linear("fc2", inner, hidden, dtype, bias=bias),
            norm("final_layer_norm"),
        ),
    )
    rows = integer(text, "max_position_embeddings") + 2
    projected = (
        (linear("project_out", hidden, width, dtype), linear("project_in", width, hidden, dtype))
        if width != hidden
        else ()
    )
    before = flag(text, "do_layer_norm_before", default=False)
    decoder = Module(
        name="decoder",
        class_name="OPTDecoder",
        children=(
            embedding("embed_tokens", integer(text, "vocab_size"), width, dtype, padding=read_padding(text)),
            embedding("embed_positions", rows, hidden, dtype, class_name="OPTLearnedPositionalEmbedding"),
            *projected,
            *((norm("final_layer_norm"),) if before else ()),
            layer_list("layers", [layer] * layers),
        ),
    )
    model = Module(name="model", class_name="OPTModel", children=(decoder,))
    return causal_lm(config, text, model, _kept(text, layers, heads, head_dim, dtype), table="decoder.embed_tokens")


# --- GPT-NeoX


def _neox(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_defaults(config, NEOX), whole_dtype(config)
    hidden, eps, inner = integer(text, "hidden_size"), text["layer_norm_eps"], integer(text, "intermediate_size")
    layers = integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    heads, head_dim = _read_heads(text, hidden)
    bias, share = flag(text, "attention_bias", default=False), text["hidden_dropout"]
    layer = Module(
        name="0",
        class_name="GPTNeoXLayer",
        children=(
            layer_norm("input_layernorm", hidden, dtype, eps=eps),
            layer_norm("post_attention_layernorm", hidden, dtype, eps=eps),
            dropout("post_attention_dropout", share),
            dropout("post_mlp_dropout", share),
            Module(
                name="attention",
                class_name="GPTNeoXAttention",
                children=(
                    linear("query_key_value", hidden, 3 * hidden, dtype, bias=bias),
                    linear("dense", hidden, hidden, dtype, bias=bias),
                ),
            ),
            Module(
                name="mlp",
                class_name="GPTNeoXMLP",
                children=(
                    linear("dense_h_to_4h", hidden, inner, dtype, bias=True),
                    linear("dense_4h_to_h", inner, hidden, dtype, bias=True),
                    activation("act", text["hidden_act"]),
                ),
            ),
        ),
    )
    # Its own name of the share of a head that turns. Source: GPTNeoXConfig.convert_rope_params_to_dict
    turned = rotary_dim({**text, "partial_rotary_factor": text["rotary_pct"]}, head_dim, partial=True)
    model = Module(
        name="gpt_neox",
        class_name="GPTNeoXModel",
        children=(
            embedding("embed_in", integer(text, "vocab_size"), hidden, dtype),
            dropout("emb_dropout", share),
            layer_list("layers", [layer] * layers),
            layer_norm("final_layer_norm", hidden, dtype, eps=eps),
            rotary("rotary_emb", "GPTNeoXRotaryEmbedding", turned),
        ),
    )
    return causal_lm(
        config,
        text,
        model,
        _kept(text, layers, heads, head_dim, dtype),
        table="embed_in",
        stored_form=_head_as_embed_out,
        unloaded=("attention.bias", "attention.masked_bias"),
    )


def _head_as_embed_out(tensor: Tensor) -> tuple[Tensor, ...]:
    """Source: transformers 5.23, conversion_mapping ("gpt_neox")."""
    return (replace(tensor, name="embed_out.weight") if tensor.name == "lm_head.weight" else tensor,)


# --- BLOOM


def _bloom(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_aliases(with_defaults(config, BLOOM), BLOOM_ALIASES), whole_dtype(config)
    if text.get("n_embed") is not None:
        text["hidden_size"] = text["n_embed"]
    hidden, eps = integer(text, "hidden_size"), text["layer_norm_epsilon"]
    layers = integer(text, "n_layer", at_most=MOST_LAYERS)
    heads, head_dim = _read_heads(text, hidden, "n_head")
    block = Module(
        name="0",
        class_name="BloomBlock",
        children=(
            layer_norm("input_layernorm", hidden, dtype, eps=eps),
            Module(
                name="self_attention",
                class_name="BloomAttention",
                children=(
                    linear("query_key_value", hidden, 3 * hidden, dtype, bias=True),
                    linear("dense", hidden, hidden, dtype, bias=True),
                    dropout("attention_dropout", text["attention_dropout"]),
                ),
            ),
            layer_norm("post_attention_layernorm", hidden, dtype, eps=eps),
            Module(
                name="mlp",
                class_name="BloomMLP",
                children=(
                    linear("dense_h_to_4h", hidden, 4 * hidden, dtype, bias=True),
                    Module(name="gelu_impl", class_name="BloomGelu"),
                    linear("dense_4h_to_h", 4 * hidden, hidden, dtype, bias=True),
                ),
            ),
        ),
    )
    model = Module(
        name="transformer",
        class_name="BloomModel",
        children=(
            embedding("word_embeddings", integer(text, "vocab_size"), hidden, dtype),
            layer_norm("word_embeddings_layernorm", hidden, dtype, eps=eps),
            layer_list("h", [block] * layers),
            layer_norm("ln_f", hidden, dtype, eps=eps),
        ),
    )
    kept = _kept(text, layers, heads, head_dim, dtype)
    return causal_lm(config, text, model, kept, table="word_embeddings", kernel="eager")


# --- Falcon


def _falcon(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_defaults(config, FALCON), whole_dtype(config)
    if text.get("n_embed") is not None:
        text["hidden_size"] = text["n_embed"]
    hidden, layers = integer(text, "hidden_size"), integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    heads, head_dim = _read_heads(text, hidden)
    kv_heads = heads if text["num_kv_heads"] is None else integer(text, "num_kv_heads")
    newer, single = (flag(text, key, default=False) for key in ("new_decoder_architecture", "multi_query"))
    if (
        newer
    ):  # keys and values are repeated for each query head before they are kept. Source: FalconAttention._split_heads
        if heads % kv_heads:
            raise MalformedError("config_heads_do_not_divide", query_heads=heads, kv_heads=kv_heads)
        kv_heads, columns = heads, (2 * kv_heads + heads) * head_dim
    elif single:
        kv_heads, columns = 1, hidden + 2 * head_dim
    else:
        kv_heads, columns = heads, 3 * hidden
        if text["num_kv_heads"] not in (None, heads):
            raise UnsupportedError("config_key_unsupported", key="num_kv_heads", found=shown(text["num_kv_heads"]))
    inner = 4 * hidden if text["ffn_hidden_size"] is None else integer(text, "ffn_hidden_size")
    bias = flag(text, "bias", default=False)
    if text["activation"] not in ("gelu", "relu", "silu", "gelu_new"):
        raise UnsupportedError("config_key_unsupported", key="activation", found=shown(text["activation"]))

    def falcon_linear(name: str, inputs: int, outputs: int) -> Module:
        return replace(linear(name, inputs, outputs, dtype, bias=bias), class_name="FalconLinear")

    layer = Module(
        name="0",
        class_name="FalconDecoderLayer",
        children=(
            Module(
                name="self_attention",
                class_name="FalconAttention",
                children=(
                    falcon_linear("query_key_value", hidden, columns),
                    falcon_linear("dense", hidden, hidden),
                    dropout("attention_dropout", text["attention_dropout"]),
                ),
            ),
            Module(
                name="mlp",
                class_name="FalconMLP",
                children=(
                    falcon_linear("dense_h_to_4h", hidden, inner),
                    activation("act", text["activation"]),
                    falcon_linear("dense_4h_to_h", inner, hidden),
                ),
            ),
            *(layer_norm(name, hidden, dtype, eps=text["layer_norm_epsilon"]) for name in _falcon_norms(text, newer)),
        ),
    )
    model = Module(
        name="transformer",
        class_name="FalconModel",
        children=(
            embedding("word_embeddings", integer(text, "vocab_size"), hidden, dtype),
            layer_list("h", [layer] * layers),
            layer_norm("ln_f", hidden, dtype, eps=text["layer_norm_epsilon"]),
            rotary("rotary_emb", "FalconRotaryEmbedding", rotary_dim(text, head_dim, partial=False)),
        ),
    )
    kept = _kept(text, layers, heads, head_dim, dtype, kv_heads)
    return causal_lm(config, text, model, kept, table="word_embeddings")


def _falcon_norms(text: Mapping[str, Any], newer: bool) -> tuple[str, ...]:
    """Names of a layer's norms; UnsupportedError for a choice with which its forward fails.

    Source: FalconDecoderLayer.__init__ and forward.
    """
    parallel, norms = flag(text, "parallel_attn", default=False), text["num_ln_in_parallel_attn"]
    if norms is None:
        norms = 2 if newer else 1
    if newer and not parallel:
        raise UnsupportedError("config_key_unsupported", key="parallel_attn", found="False")
    if norms not in ((1, 2) if newer else (0, 1)) or isinstance(norms, bool):
        raise UnsupportedError("config_key_unsupported", key="num_ln_in_parallel_attn", found=shown(norms))
    if not parallel:
        return ("post_attention_layernorm", "input_layernorm")
    return ("ln_attn", "ln_mlp") if norms == 2 else ("input_layernorm",)


# --- MPT


def _mpt(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_aliases(with_defaults(config, MPT), MPT_ALIASES), whole_dtype(config)
    hidden, layers = integer(text, "d_model"), integer(text, "n_layers", at_most=MOST_LAYERS)
    heads, head_dim = _read_heads(text, hidden, "n_heads")
    attention = text["attn_config"] or {}
    if not isinstance(attention, Mapping):
        raise MalformedError("config_not_object", key="attn_config", found=shown(attention))

    def norm(name: str) -> Module:
        full = layer_norm(name, hidden, dtype, eps=text["layer_norm_epsilon"])
        arguments = full.arguments.replace("bias=True", "bias=False")
        return replace(full, tensors=full.tensors[:1], arguments=arguments)

    block = Module(
        name="0",
        class_name="MptBlock",
        children=(
            norm("norm_1"),
            Module(
                name="attn",
                class_name="MptAttention",
                children=(linear("Wqkv", hidden, 3 * hidden, dtype), linear("out_proj", hidden, hidden, dtype)),
            ),
            norm("norm_2"),
            Module(
                name="ffn",
                class_name="MptMLP",
                children=(
                    linear("up_proj", hidden, 4 * hidden, dtype),
                    Module(name="act", class_name="GELU", arguments="approximate='none'"),
                    linear("down_proj", 4 * hidden, hidden, dtype),
                ),
            ),
            dropout("resid_attn_dropout", attention.get("attn_pdrop", 0)),
        ),
    )
    model = Module(
        name="transformer",
        class_name="MptModel",
        children=(
            embedding("wte", integer(text, "vocab_size"), hidden, dtype),
            layer_list("blocks", [block] * layers),
            norm("norm_f"),
        ),
    )
    kept = _kept(text, layers, heads, head_dim, dtype)
    return causal_lm(config, text, model, kept, table="wte", kernel="eager")
