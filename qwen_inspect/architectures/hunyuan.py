"""Hunyuan, dense and with experts: queries and keys are normed after they turn; every layer's experts stand beside a shared MLP.

Source: transformers 5.23, models/hunyuan_v1_dense, hunyuan_v1_moe.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType
from ..errors import MalformedError
from ..spec import Module
from ..typed import Any
from .decoders import Decoder, read_decoder
from .design import Architecture
from .mixture import EXPERTS
from .outline import causal_lm, experts, linear, read_spans, whole_dtype, with_aliases, with_defaults
from .reading import MOST_EXPERTS, flag, integer
from .sparse import stored_by_expert

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 290943,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,  # the classes fail without
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
ALIASES = {"num_local_experts": "num_experts", "num_experts_per_tok": "moe_topk"}


def architecture(config: Mapping[str, Any]) -> Architecture:
    if config["model_type"] == "hunyuan_v1_moe":
        text = with_defaults(with_aliases(config, ALIASES), {**DEFAULTS, "num_experts": 1, "moe_topk": 1})
        decoder = read_decoder(text, whole_dtype(config), "HunYuanMoEV1")
        mlp = _block(decoder)
    else:
        text = with_defaults(config, DEFAULTS)
        decoder = read_decoder(text, whole_dtype(config), "HunYuanDenseV1")
        mlp = decoder.mlp()
    kept = decoder.kept(read_spans(text, decoder.layers))
    return causal_lm(config, text, _model(decoder, mlp), kept, stored_form=stored_by_expert("mlp", EXPERTS))


def _model(decoder: Decoder, mlp: Module) -> Module:
    norms = [decoder.norm(name, decoder.head_dim) for name in ("query_layernorm", "key_layernorm")]
    attention = decoder.attention(*norms, bias=flag(decoder.text, "attention_bias", default=False))
    return decoder.model(decoder.prenorm_layer(attention, mlp))


def _block(decoder: Decoder) -> Module:
    text, prefix, hidden = decoder.text, decoder.prefix, decoder.hidden
    count, width = integer(text, "num_experts"), integer(text, "intermediate_size")
    if decoder.layers * count > MOST_EXPERTS:
        raise MalformedError("config_too_many_experts", layers=decoder.layers, experts=count, most=MOST_EXPERTS)
    return Module(
        name="mlp",
        class_name=f"{prefix}Moe",
        children=(
            Module(name="gate", class_name=f"{prefix}Gate", children=(linear("wg", hidden, count, DType.F32),)),
            experts("experts", f"{prefix}Experts", count, hidden, width, text["hidden_act"], decoder.dtype),
            decoder.mlp("shared_mlp"),
        ),
    )
