"""gpt-oss: attention with sinks and alternating windows, experts with biases on every layer.

Source: transformers 5.23, models/gpt_oss; gpt-oss model card (arXiv 2508.10925).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint import Tensor
from ..spec import Module
from .blocks import linear, rotary
from .design import Architecture
from .outline import (
    causal_lm,
    embedding,
    keeps_heads,
    layer_list,
    norm,
    read_heads,
    read_padding,
    read_spans,
    whole_dtype,
    with_defaults,
)
from .reading import MOST_HEADS, flag, integer, read_head_dim

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
    renamed = {"num_local_experts" if key == "num_experts" else key: value for key, value in config.items()}
    text, dtype = with_defaults(renamed, DEFAULTS), whole_dtype(config)
    hidden, inner, eps = integer(text, "hidden_size"), integer(text, "intermediate_size"), text["rms_norm_eps"]
    query_heads, kv_heads = read_heads(text)
    head_dim, bias = read_head_dim(text), flag(text, "attention_bias", default=False)
    rows, columns = query_heads * head_dim, kv_heads * head_dim
    experts = integer(text, "num_local_experts", at_most=MOST_HEADS)
    per_token = integer(text, "num_experts_per_tok", at_most=experts)
    layer = Module(
        name="0",
        class_name="GptOssDecoderLayer",
        children=(
            Module(
                name="self_attn",
                class_name="GptOssAttention",
                tensors=(Tensor("sinks", (query_heads,), dtype),),
                children=(
                    linear("q_proj", hidden, rows, dtype, bias=bias),
                    linear("k_proj", hidden, columns, dtype, bias=bias),
                    linear("v_proj", hidden, columns, dtype, bias=bias),
                    linear("o_proj", rows, hidden, dtype, bias=bias),
                ),
            ),
            Module(
                name="mlp",
                class_name="GptOssMLP",
                children=(
                    Module(
                        name="router",
                        class_name="GptOssTopKRouter",
                        tensors=(Tensor("weight", (experts, hidden), dtype), Tensor("bias", (experts,), dtype)),
                    ),
                    Module(
                        name="experts",
                        class_name="GptOssExperts",
                        # Stored as used: (experts, inputs, outputs), gate and up interleaved.
                        tensors=(
                            Tensor("gate_up_proj", (experts, hidden, 2 * inner), dtype),
                            Tensor("gate_up_proj_bias", (experts, 2 * inner), dtype),
                            Tensor("down_proj", (experts, inner, hidden), dtype),
                            Tensor("down_proj_bias", (experts, hidden), dtype),
                        ),
                    ),
                ),
            ),
            norm("input_layernorm", "GptOssRMSNorm", hidden, dtype, eps=eps),
            norm("post_attention_layernorm", "GptOssRMSNorm", hidden, dtype, eps=eps),
        ),
    )
    layers = integer(text, "num_hidden_layers")
    model = Module(
        name="model",
        class_name="GptOssModel",
        children=(
            embedding("embed_tokens", integer(text, "vocab_size"), hidden, dtype, padding=read_padding(text)),
            layer_list("layers", [layer] * layers),
            norm("norm", "GptOssRMSNorm", hidden, dtype, eps=eps),
            rotary("rotary_emb", "GptOssRotaryEmbedding", head_dim),
        ),
    )
    if text.get("layer_types") is None:
        text["layer_types"] = ["full_attention" if index % 2 else "sliding_attention" for index in range(layers)]
    kept = [
        keeps_heads(index, query_heads, kv_heads, head_dim, dtype, kind=kind, window=window)
        for index, (kind, window) in enumerate(read_spans(text, layers))
    ]
    # Sinks leave no sdpa. Source: GptOssPreTrainedModel._supports_sdpa
    return causal_lm(config, text, model, kept, routed=(per_token, experts), kernel="eager")
