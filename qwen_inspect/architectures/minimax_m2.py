"""MiniMax-M2: many small experts in every layer, chosen with a balancing bias; queries and keys normed over all heads together.

Source: transformers 5.23, models/minimax_m2.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Tensor
from ..typed import Any
from ..values import replace
from .decoders import read_decoder
from .design import Architecture
from .mixture import SCORE_BIAS
from .outline import causal_lm, read_spans, whole_dtype, with_aliases, with_defaults
from .reading import integer
from .sparse import read_routed, sparse_block, stored_by_expert

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 200064,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_hidden_layers": 62,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 196608,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 8,
    "num_local_experts": 256,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text = with_defaults(with_aliases(config, {"num_experts": "num_local_experts"}), DEFAULTS)
    if text.get("rotary_dim") is not None and "partial_rotary_factor" not in text:  # MiniMaxM2Config
        text["partial_rotary_factor"] = integer(text, "rotary_dim") / integer(text, "head_dim")
    decoder = read_decoder(text, whole_dtype(config), "MiniMaxM2")
    attention = decoder.attention(
        decoder.norm("q_norm", decoder.query_heads * decoder.head_dim),
        decoder.norm("k_norm", decoder.kv_heads * decoder.head_dim),
    )
    _, count = read_routed(text, "num_local_experts", layers=decoder.layers)
    block = sparse_block(decoder, count, name="mlp", class_name="SparseMoeBlock")
    biased = replace(block, buffers=(Tensor(SCORE_BIAS, (count,), decoder.dtype),))
    model = decoder.model(decoder.prenorm_layer(attention, biased), rotary_table=decoder.rotary(partial=True))
    return causal_lm(
        config,
        text,
        model,
        decoder.kept(read_spans(text, decoder.layers)),
        persistent=(SCORE_BIAS,),
        stored_form=stored_by_expert("block_sparse_moe", ("w1", "w3", "w2")),
    )
