"""ERNIE 4.5: the usual decoder; with experts in some layers, whose router and balancing bias are float32 weights.

Source: transformers 5.23, models/ernie4_5, ernie4_5_moe.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .decoders import Decoder, read_decoder
from .design import Architecture
from .mixture import EXPERTS, SCORE_BIAS
from .outline import causal_lm, experts, read_spans, whole_dtype, with_aliases, with_defaults
from .reading import MOST_EXPERTS, flag, integer
from .sparse import stored_by_expert

_DENSE: Mapping[str, Any] = {
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "use_bias": False,
}
_SPARSE: Mapping[str, Any] = {
    **{key: value for key, value in _DENSE.items() if key != "head_dim"},
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
}
ALIASES = {"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"}


def architecture(config: Mapping[str, Any]) -> Architecture:
    if config["model_type"] == "ernie4_5_moe":
        return _sparse(config)
    text = with_defaults(config, _DENSE)
    decoder = read_decoder(text, whole_dtype(config), "Ernie4_5", null_head_dim=True)
    bias = flag(text, "use_bias", default=False)
    layer = decoder.prenorm_layer(decoder.attention(bias=bias), decoder.mlp(bias=bias))
    return causal_lm(config, text, decoder.model(layer), decoder.kept(read_spans(text, decoder.layers)))


def _sparse(config: Mapping[str, Any]) -> Architecture:
    text = with_defaults(with_aliases(config, ALIASES), _SPARSE)
    decoder = read_decoder(text, whole_dtype(config), "Ernie4_5_Moe")
    bias = flag(text, "use_bias", default=False)
    attention = decoder.attention(bias=bias)
    dense = decoder.prenorm_layer(attention, decoder.mlp(bias=bias))
    sparse = decoder.prenorm_layer(attention, _block(decoder, bias=bias))
    model = decoder.model([sparse if kind else dense for kind in _read_sparse(text, decoder.layers)])
    return causal_lm(
        config,
        text,
        model,
        decoder.kept(read_spans(text, decoder.layers)),
        head_bias=bias,
        stored_form=_stored_form,
        unloaded=("mtp",),
    )


def _read_sparse(text: Mapping[str, Any], layers: int) -> list[bool]:
    """Whether each layer has experts: each so many-th between two indices. Source: Ernie4_5_MoeDecoderLayer."""
    first, every = integer(text, "moe_layer_start_index", at_least=0), integer(text, "moe_layer_interval")
    last = integer(text, "moe_layer_end_index", at_least=-1)
    return [
        (index + 1) % every == 0 and first <= index <= (layers - 1 if last == -1 else last) for index in range(layers)
    ]


def _block(decoder: Decoder, *, bias: bool) -> Module:
    text, prefix, hidden, dtype = decoder.text, decoder.prefix, decoder.hidden, decoder.dtype
    count, width = integer(text, "moe_num_experts"), integer(text, "moe_intermediate_size")
    if decoder.layers * count > MOST_EXPERTS:
        raise MalformedError("config_too_many_experts", layers=decoder.layers, experts=count, most=MOST_EXPERTS)
    shared = integer(text, "moe_num_shared_experts", at_least=0)
    statics = Module(
        name="moe_statics",
        class_name=f"{prefix}Statics",
        tensors=(Tensor(SCORE_BIAS, (1, count), DType.F32),),
    )
    return Module(
        name="mlp",
        class_name=f"{prefix}SparseMoeBlock",
        children=(
            Module(
                name="gate",
                class_name=f"{prefix}TopKRouter",
                tensors=(Tensor("weight", (count, hidden), DType.F32),),
                children=(statics,),
            ),
            experts("experts", f"{prefix}Experts", count, hidden, width, text["hidden_act"], dtype),
            *((decoder.mlp("shared_experts", width=shared * width, bias=bias),) if shared else ()),
        ),
    )


_by_expert = stored_by_expert("mlp", EXPERTS)


def _stored_form(tensor: Tensor) -> tuple[Tensor, ...]:
    """Files hold the bias beside the router. Source: transformers 5.23, conversion_mapping ("ernie4_5_moe")."""
    if tensor.name.endswith(f".gate.moe_statics.{SCORE_BIAS}"):
        return (replace(tensor, name=tensor.name.replace(".gate.moe_statics.", ".moe_statics.")),)
    return _by_expert(tensor)
