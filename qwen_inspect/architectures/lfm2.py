"""LFM2, dense and with experts: short convolutions, of which a layer keeps its last columns, and attention on some layers.

Source: transformers 5.23, models/{lfm2,lfm2_moe}; LFM2 (arXiv 2511.23404).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .decoders import Decoder, read_decoder
from .design import Architecture
from .outline import (
    causal_lm,
    convolution,
    embedding,
    keeps_heads,
    keeps_states,
    layer_list,
    linear,
    read_padding,
    whole_dtype,
    with_defaults,
)
from .reading import check_layer_types, flag, integer, shown
from .sparse import read_routed, stored_by_expert

DENSE: Mapping[str, Any] = {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "norm_eps": 1e-5,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
    "full_attn_idxs": None,
    "layer_types": None,
}
SPARSE: Mapping[str, Any] = {
    **{key: value for key, value in DENSE.items() if not key.startswith("block_")},
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_dense_layers": 2,
    "num_experts_per_tok": 4,
    "num_experts": 32,
    "use_expert_bias": True,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    sparse = config["model_type"] == "lfm2_moe"
    text, dtype = with_defaults(config, SPARSE if sparse else DENSE), whole_dtype(config)
    if "tie_embedding" in text:
        text["tie_word_embeddings"] = text["tie_embedding"]
    if "block_ff_dim" in text and not sparse:
        text["intermediate_size"] = text["block_ff_dim"]
    prefix = "Lfm2Moe" if sparse else "Lfm2"
    decoder = read_decoder(text, dtype, prefix, eps="norm_eps")
    types = _types(text, decoder.layers, sparse=sparse)
    attention = decoder.attention(
        decoder.norm("q_layernorm", decoder.head_dim), decoder.norm("k_layernorm", decoder.head_dim), output="out_proj"
    )
    mixers = {"full_attention": attention, "conv": _convolution(decoder)}
    norms = (decoder.norm("operator_norm"), decoder.norm("ffn_norm"))
    width = integer(text, "intermediate_size")
    dense = _mlp(decoder, width if sparse else _adjusted(text, width))
    dense_layers = integer(text, "num_dense_layers", at_least=0) if sparse else decoder.layers
    routed = read_routed(text, "num_experts", layers=decoder.layers) if sparse else None
    experts = _sparse(decoder, routed[1]) if routed and dense_layers < decoder.layers else dense
    layers = [
        decoder.layer(mixers[kind], dense if index < dense_layers else experts, *norms)
        for index, kind in enumerate(types)
    ]
    model = Module(
        name="model",
        class_name=f"{prefix}Model",
        children=(
            embedding("embed_tokens", integer(text, "vocab_size"), decoder.hidden, dtype, padding=read_padding(text)),
            layer_list("layers", layers),
            replace(decoder.rotary(), name="pos_emb" if sparse else "rotary_emb"),
            decoder.norm("embedding_norm"),
        ),
    )
    state = decoder.hidden * integer(text, "conv_L_cache") * dtype.bits // 8
    kept = [
        keeps_states(index, "convolution", (state,))
        if kind == "conv"
        else keeps_heads(index, decoder.query_heads, decoder.kv_heads, decoder.head_dim, dtype)
        for index, kind in enumerate(types)
    ]
    return causal_lm(
        config,
        text,
        model,
        kept,
        routed=routed,
        persistent=("expert_bias",),
        stored_form=stored_by_expert("feed_forward", ("w1", "w3", "w2"), built="feed_forward"),
    )


def _types(text: Mapping[str, Any], layers: int, *, sparse: bool) -> list[str]:
    types = text["layer_types"]
    if types is None and not sparse:
        full = text["full_attn_idxs"]
        if full is not None and not (isinstance(full, list) and all(type(index) is int for index in full)):
            raise UnsupportedError("config_key_unsupported", key="full_attn_idxs", found=shown(full))
        types = ["full_attention" if full is None or index in full else "conv" for index in range(layers)]
    check_layer_types(types, layers, kinds=("full_attention", "conv"))
    if "full_attention" not in types:
        raise UnsupportedError("config_all_linear")
    return list(types)


def _adjusted(text: Mapping[str, Any], width: int) -> int:
    """The MLP's width: two thirds of the stated, scaled and rounded up, if the configuration asks for that.

    Source: Lfm2MLP.__init__.
    """
    if not flag(text, "block_auto_adjust_ff_dim", default=False):
        return width
    width = int(2 * width / 3)
    factor = text["block_ffn_dim_multiplier"]
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1024:
        raise UnsupportedError("config_key_unsupported", key="block_ffn_dim_multiplier", found=shown(factor))
    multiple = integer(text, "block_multiple_of")
    return multiple * -(-int(factor * width) // multiple)


def _mlp(decoder: Decoder, width: int) -> Module:
    hidden, dtype = decoder.hidden, decoder.dtype
    return Module(
        name="feed_forward",
        class_name=f"{decoder.prefix}MLP",
        children=(
            linear("w1", hidden, width, dtype),
            linear("w3", hidden, width, dtype),
            linear("w2", width, hidden, dtype),
        ),
    )


def _convolution(decoder: Decoder) -> Module:
    hidden, dtype, bias = decoder.hidden, decoder.dtype, flag(decoder.text, "conv_bias", default=False)
    return Module(
        name="conv",
        class_name=f"{decoder.prefix}ShortConv",
        children=(
            convolution("conv", hidden, integer(decoder.text, "conv_L_cache"), dtype, bias=bias),
            linear("in_proj", hidden, 3 * hidden, dtype, bias=bias),
            linear("out_proj", hidden, hidden, dtype, bias=bias),
        ),
    )


def _sparse(decoder: Decoder, count: int) -> Module:
    text, hidden, dtype = decoder.text, decoder.hidden, decoder.dtype
    width = integer(text, "moe_intermediate_size")
    biased = flag(text, "use_expert_bias", default=False)
    stacks = (
        Tensor("gate_up_proj", (count, 2 * width, hidden), dtype),
        Tensor("down_proj", (count, hidden, width), dtype),
    )
    return Module(
        name="feed_forward",
        class_name="Lfm2MoeSparseMoeBlock",
        buffers=(Tensor("expert_bias", (count,), DType.F32),) if biased else (),
        children=(
            Module(name="experts", class_name="Lfm2MoeExperts", tensors=stacks),
            Module(name="gate", class_name="Lfm2MoeTopKRouter", tensors=(Tensor("weight", (count, hidden), dtype),)),
        ),
    )
