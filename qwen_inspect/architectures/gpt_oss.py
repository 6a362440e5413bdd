"""gpt-oss: attention with sinks and alternating windows, experts with biases on every layer.

Source: transformers 5.23, models/gpt_oss; gpt-oss model card (arXiv 2508.10925).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Tensor
from ..spec import Module
from ..typed import Any
from ..values import replace
from .decoders import read_decoder
from .design import Architecture
from .outline import causal_lm, read_spans, whole_dtype, with_aliases, with_defaults
from .reading import MOST_HEADS, flag, integer, not_halved

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "sliding_window": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "attention_bias": True,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = (
        with_defaults(with_aliases(config, {"num_experts": "num_local_experts"}), DEFAULTS),
        whole_dtype(config),
    )
    decoder = replace(read_decoder(text, dtype, "GptOss", null_head_dim=True), norm_dtype=not_halved(dtype))
    experts = integer(text, "num_local_experts", at_most=MOST_HEADS)
    per_token = integer(text, "num_experts_per_tok", at_most=experts)
    if text.get("layer_types") is None:
        types = ["full_attention" if index % 2 else "sliding_attention" for index in range(decoder.layers)]
        text["layer_types"] = types
    attention = replace(
        decoder.attention(bias=flag(text, "attention_bias", default=False)),
        tensors=(Tensor("sinks", (decoder.query_heads,), dtype),),
    )
    hidden, inner = decoder.hidden, integer(text, "intermediate_size")
    router = Module(
        name="router",
        class_name="GptOssTopKRouter",
        tensors=(Tensor("weight", (experts, hidden), dtype), Tensor("bias", (experts,), dtype)),
    )
    # Stored as used: (experts, inputs, outputs), gate and up interleaved.
    stacks = Module(
        name="experts",
        class_name="GptOssExperts",
        tensors=(
            Tensor("gate_up_proj", (experts, hidden, 2 * inner), dtype),
            Tensor("gate_up_proj_bias", (experts, 2 * inner), dtype),
            Tensor("down_proj", (experts, inner, hidden), dtype),
            Tensor("down_proj_bias", (experts, hidden), dtype),
        ),
    )
    mlp = Module(name="mlp", class_name="GptOssMLP", children=(router, stacks))
    model = decoder.model(decoder.prenorm_layer(attention, mlp))
    kept = decoder.kept(read_spans(text, decoder.layers))
    # Sinks leave no sdpa. Source: GptOssPreTrainedModel._supports_sdpa
    return causal_lm(config, text, model, kept, routed=(per_token, experts), kernel="eager")
