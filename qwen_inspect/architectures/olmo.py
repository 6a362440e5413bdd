"""OLMo 2 and 3: norms behind attention and MLP, and over all queries and keys; OLMoE: the usual order, with experts.

Source: transformers 5.23, models/olmo2, olmo3, olmoe; OLMo 2 (arXiv 2501.00656), OLMoE (arXiv 2409.02060).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Tensor
from ..errors import UnsupportedError
from ..spec import Module
from ..typed import Any
from .decoders import Decoder, read_decoder, with_layer_types
from .design import Architecture
from .outline import (
    causal_lm,
    frequencies,
    read_object,
    read_spans,
    rotary_dim,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .reading import flag, shown
from .sparse import read_routed, sparse_block, stored_by_expert

_OLMO2: Mapping[str, Any] = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "olmo2": _OLMO2,
    "olmo3": {**_OLMO2, "sliding_window": 4096},
    "olmoe": {
        **_OLMO2,
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "max_position_embeddings": 4096,
        "num_experts_per_tok": 8,
        "num_experts": 64,
    },
}
PREFIXES = {"olmo2": "Olmo2", "olmo3": "Olmo3", "olmoe": "Olmoe"}
ALIASES: Mapping[str, Mapping[str, str]] = {"olmoe": {"num_local_experts": "num_experts"}}


def architecture(config: Mapping[str, Any]) -> Architecture:
    model_type = str(config["model_type"])
    text = with_defaults(with_aliases(config, ALIASES.get(model_type, {})), DEFAULTS[model_type])
    if model_type == "olmo3":
        text = with_layer_types(text, lambda index: (index + 1) % 4 == 0)
    decoder = read_decoder(text, whole_dtype(config), PREFIXES[model_type])
    kept = decoder.kept(read_spans(text, decoder.layers))
    attention = decoder.attention(
        decoder.norm("q_norm", decoder.query_heads * decoder.head_dim),
        decoder.norm("k_norm", decoder.kv_heads * decoder.head_dim),
        bias=flag(text, "attention_bias", default=False),
    )
    if model_type == "olmoe":
        if decoder.query_heads * decoder.head_dim != decoder.hidden:  # its norms have the width of the hidden states
            raise UnsupportedError("config_key_unsupported", key="head_dim", found=shown(decoder.head_dim))
        routed = read_routed(text, "num_experts", layers=decoder.layers)
        block = sparse_block(decoder, routed[1], name="mlp", class_name="SparseMoeBlock")
        stored = stored_by_expert("mlp", ("gate_proj", "up_proj", "down_proj"))
        model = decoder.model(decoder.prenorm_layer(attention, block))
        return causal_lm(config, text, model, kept, routed=routed, stored_form=stored)
    norms = [decoder.norm(f"post_{part}_layernorm") for part in ("attention", "feedforward")]
    layer = decoder.layer(attention, decoder.mlp(), *norms)
    table = _rotary_of_each_type(decoder) if model_type == "olmo3" else None
    return causal_lm(config, text, decoder.model(layer, rotary_table=table), kept)


def _rotary_of_each_type(decoder: Decoder) -> Module:
    """Frequencies of each type of layer that there is. Parameters beside the types' own count for none of them.

    Source: Olmo3RotaryEmbedding, Olmo3Config.convert_rope_params_to_dict.
    """
    text = decoder.text
    nested, scaling = read_object(text, "rope_parameters"), read_object(text, "rope_scaling")
    buffers: list[Tensor] = []
    for kind in sorted(set(text["layer_types"])):
        rope = {**read_object(nested, kind), **(scaling if kind == "full_attention" else {})}
        dim = rotary_dim({"rope_parameters": rope}, decoder.head_dim, partial=False)
        if dim != decoder.head_dim:
            raise UnsupportedError("config_key_unsupported", key="partial_rotary_factor", found=shown(rope))
        buffers += frequencies(dim, prefix=f"{kind}_")
    return Module(name="rotary_emb", class_name="Olmo3RotaryEmbedding", buffers=tuple(buffers))
