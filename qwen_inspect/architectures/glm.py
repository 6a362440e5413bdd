"""GLM-4 and its dense successors, which norm before and after each part; GLM-4.5 to 4.7: many small experts.

Source: transformers 5.23, models/glm, glm4, glm4_moe.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType
from ..spec import Module
from ..typed import Any
from .decoders import Decoder, read_decoder
from .design import Architecture
from .mixture import EXPERTS, SCORE_BIAS, mixture, read_sparse_layers
from .outline import causal_lm, read_spans, whole_dtype, with_aliases, with_defaults
from .reading import flag, integer
from .sparse import stored_by_expert

_GLM: Mapping[str, Any] = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 0.00000015625,
    "pad_token_id": 151329,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
}
_GLM4_MOE: Mapping[str, Any] = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "first_k_dense_replace": 1,
    "use_qk_norm": False,
    "partial_rotary_factor": 0.5,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    if config["model_type"] == "glm4_moe":
        return _sparse(config)
    prefix = "Glm4" if config["model_type"] == "glm4" else "Glm"
    text = with_defaults(config, _GLM)
    decoder = read_decoder(text, whole_dtype(config), prefix)
    names = ["input_layernorm", "post_attention_layernorm"]
    if prefix == "Glm4":
        names += ["post_self_attn_layernorm", "post_mlp_layernorm"]
    layer = decoder.layer(_attention(decoder), decoder.joint_mlp(), *map(decoder.norm, names))
    model = decoder.model(layer, rotary_table=decoder.rotary(partial=True))
    return causal_lm(config, text, model, decoder.kept(read_spans(text, decoder.layers)))


def _sparse(config: Mapping[str, Any]) -> Architecture:
    text = with_defaults(with_aliases(config, {"num_local_experts": "n_routed_experts"}), _GLM4_MOE)
    decoder = read_decoder(text, whole_dtype(config), "Glm4Moe")
    normed = flag(text, "use_qk_norm", default=False)
    norms = [decoder.norm(name, decoder.head_dim) for name in ("q_norm", "k_norm") if normed]
    attention = _attention(decoder, *norms)
    dense = decoder.prenorm_layer(attention, decoder.mlp())
    sparse = decoder.prenorm_layer(attention, mixture(decoder, score_bias=DType.F32))
    untyped = {**text, "mlp_layer_types": None}
    kinds = read_sparse_layers(
        untyped, decoder.layers, integer(text, "n_routed_experts"), dense_first="first_k_dense_replace"
    )
    model = decoder.model([sparse if kind else dense for kind in kinds], rotary_table=decoder.rotary(partial=True))
    return causal_lm(
        config,
        text,
        model,
        decoder.kept(read_spans(text, decoder.layers)),
        persistent=(SCORE_BIAS,),
        stored_form=stored_by_expert("mlp", EXPERTS),
        unloaded=(r"model\.layers\.46.*", r"model\.layers\.92.*"),
    )


def _attention(decoder: Decoder, *norms: Module) -> Module:
    return decoder.attention(*norms, bias=flag(decoder.text, "attention_bias", default=False), output_bias=False)
