"""Llama 4: chunked attention with RoPE, full attention without; a shared expert beside routed ones on some or all layers; behind
a ViT, or text alone.

Source: transformers 5.23, models/llama4.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..typed import Any
from .blocks import linear, rotary
from .design import Architecture, KeptLayer
from .outline import (
    activation,
    causal_lm,
    embedding,
    keeps_heads,
    layer_list,
    layer_norm,
    norm,
    outlined,
    read_heads,
    read_padding,
    read_spans,
    rotary_dim,
    whole_dtype,
    with_defaults,
)
from .reading import MOST_HEADS, check_layer_types, flag, integer, read_class_name, read_head_dim, shown

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "moe_layers": None,
    "interleave_moe_layer_step": 1,
    "use_qk_norm": True,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "layer_types": None,
    "attention_bias": False,
}
VISION_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "num_channels": 3,
    "intermediate_size": 5632,
    "vision_output_dim": 7680,
    "image_size": 448,
    "patch_size": 14,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    dtype = whole_dtype(config)
    if config["model_type"] == "llama4_text":
        text = with_defaults(config, DEFAULTS)
        return causal_lm(config, text, decoder(text, dtype), kept_layers(text, dtype), routed=_routed(text))
    # The decoder is a causal LM of its own, which ties by its own configuration.
    text = with_defaults(_part(config, "text_config"), DEFAULTS)
    vision = with_defaults(_part(config, "vision_config"), VISION_DEFAULTS)
    hidden, rows = integer(text, "hidden_size"), integer(text, "vocab_size")
    table, head = "language_model.model.embed_tokens", "language_model.lm_head"
    tied_to = f"{table}.weight" if flag(text, "tie_word_embeddings", default=False) else None
    language_model = Module(
        name="language_model",
        class_name="Llama4ForCausalLM",
        children=(decoder(text, dtype), linear("lm_head", hidden, rows, dtype, tied_to=tied_to)),
    )
    projector = Module(
        name="multi_modal_projector",
        class_name="Llama4MultiModalProjector",
        children=(linear("linear_1", integer(vision, "vision_output_dim"), hidden, dtype),),
    )
    tree = Module(
        name="", class_name=read_class_name(config), children=(seeing(vision, dtype), projector, language_model)
    )
    kept = kept_layers(text, dtype)
    return outlined(config, tree, kept, text=text, table=table, head=head, routed=_routed(text))


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    nested = config.get(key)
    if nested is None:
        return {}
    if not isinstance(nested, Mapping):
        raise MalformedError("config_not_object", key=key, found=shown(nested))
    return nested


def _routed(text: Mapping[str, Any]) -> tuple[int, int]:
    experts = integer(text, "num_local_experts", at_most=MOST_HEADS)
    return integer(text, "num_experts_per_tok", at_most=experts), experts


def _layer_numbers(text: Mapping[str, Any], key: str) -> list[int]:
    numbers = text[key]
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise UnsupportedError("config_key_unsupported", key=key, found=shown(numbers))
    return numbers


def _rotates(text: Mapping[str, Any]) -> list[bool]:
    """Whether each layer has RoPE; by default all but every fourth. Source: Llama4TextConfig.__post_init__."""
    layers, every = integer(text, "num_hidden_layers"), integer(text, "no_rope_layer_interval")
    if not text["no_rope_layers"]:
        return [bool((index + 1) % every) for index in range(layers)]
    listed = [bool(entry) for entry in _layer_numbers(text, "no_rope_layers")]
    if len(listed) < layers:
        raise MalformedError("gguf_per_layer", key="no_rope_layers", layers=layers, found=len(listed))
    return listed


def kept_layers(text: Mapping[str, Any], dtype: DType) -> list[KeptLayer]:
    query_heads, kv_heads = read_heads(text)
    layers, types = integer(text, "num_hidden_layers"), text["layer_types"]
    if types is None:
        types = ["chunked_attention" if rotates else "full_attention" for rotates in _rotates(text)]
    check_layer_types(types, layers, kinds=("full_attention", "chunked_attention"))
    return [
        keeps_heads(index, query_heads, kv_heads, read_head_dim(text), dtype, kind=kind, window=window)
        for index, (kind, window) in enumerate(read_spans({**text, "layer_types": types}, layers))
    ]


def decoder(text: Mapping[str, Any], dtype: DType) -> Module:
    hidden, eps, layers = integer(text, "hidden_size"), text["rms_norm_eps"], integer(text, "num_hidden_layers")
    step = integer(text, "interleave_moe_layer_step")
    sparse = range(step - 1, layers, step) if text["moe_layers"] is None else _layer_numbers(text, "moe_layers")
    differences = [(index in sparse, rotates) for index, rotates in zip(range(layers), _rotates(text), strict=False)]
    layer_of = {difference: _layer(text, *difference, dtype) for difference in set(differences)}
    return Module(
        name="model",
        class_name="Llama4TextModel",
        children=(
            embedding("embed_tokens", integer(text, "vocab_size"), hidden, dtype, padding=read_padding(text)),
            layer_list("layers", [layer_of[difference] for difference in differences]),
            norm("norm", "Llama4TextRMSNorm", hidden, dtype, eps=eps),
            rotary("rotary_emb", "Llama4TextRotaryEmbedding", rotary_dim(text, read_head_dim(text), partial=False)),
        ),
    )


def _layer(text: Mapping[str, Any], is_sparse: bool, rotates: bool, dtype: DType) -> Module:
    hidden, eps, bias = integer(text, "hidden_size"), text["rms_norm_eps"], flag(text, "attention_bias", default=False)
    (query_heads, kv_heads), head_dim = read_heads(text), read_head_dim(text)
    rows, columns = query_heads * head_dim, kv_heads * head_dim
    head_norm = Module(name="qk_norm", class_name="Llama4TextL2Norm", arguments=f"eps={eps}")
    attention = Module(
        name="self_attn",
        class_name="Llama4TextAttention",
        children=(
            linear("q_proj", hidden, rows, dtype, bias=bias),
            linear("k_proj", hidden, columns, dtype, bias=bias),
            linear("v_proj", hidden, columns, dtype, bias=bias),
            linear("o_proj", rows, hidden, dtype, bias=bias),
            *((head_norm,) if rotates and flag(text, "use_qk_norm", default=False) else ()),
        ),
    )
    dense = _mlp("feed_forward", hidden, integer(text, "intermediate_size_mlp"), text["hidden_act"], dtype)
    return Module(
        name="0",
        class_name="Llama4TextDecoderLayer",
        children=(
            attention,
            _sparse_block(text, dtype) if is_sparse else dense,
            norm("input_layernorm", "Llama4TextRMSNorm", hidden, dtype, eps=eps),
            norm("post_attention_layernorm", "Llama4TextRMSNorm", hidden, dtype, eps=eps),
        ),
    )


def _sparse_block(text: Mapping[str, Any], dtype: DType) -> Module:
    hidden, inner, act = integer(text, "hidden_size"), integer(text, "intermediate_size"), text["hidden_act"]
    _, count = _routed(text)
    experts = Module(
        name="experts",
        class_name="Llama4TextExperts",
        # (experts, inputs, outputs), as multiplied and as stored
        tensors=(
            Tensor("gate_up_proj", (count, hidden, 2 * inner), dtype),
            Tensor("down_proj", (count, inner, hidden), dtype),
        ),
        children=(activation("act_fn", act),),
    )
    router = Module(
        name="router",
        class_name="Llama4Router",
        arguments=f"in_features={hidden}, out_features={count}, bias=False",
        tensors=(Tensor("weight", (count, hidden), dtype),),
    )
    shared = _mlp("shared_expert", hidden, inner, act, dtype)
    return Module(name="feed_forward", class_name="Llama4TextMoe", children=(experts, router, shared))


def _mlp(name: str, hidden: int, inner: int, act: object, dtype: DType) -> Module:
    return Module(
        name=name,
        class_name="Llama4TextMLP",
        children=(
            linear("gate_proj", hidden, inner, dtype),
            linear("up_proj", hidden, inner, dtype),
            linear("down_proj", inner, hidden, dtype),
            activation("activation_fn", act),
        ),
    )


# --- images


def seeing(vision: Mapping[str, Any], dtype: DType) -> Module:
    """A ViT with a class token, learned positions and RoPE in two dimensions, and an MLP over neighbouring patches."""
    hidden, side = integer(vision, "hidden_size"), integer(vision, "patch_size")
    positions = (integer(vision, "image_size") // side) ** 2 + 1
    inputs = integer(vision, "num_channels") * side**2
    heads = integer(vision, "num_attention_heads")
    head_dim = hidden // heads
    patches = Module(
        name="patch_embedding",
        class_name="Llama4UnfoldConvolution",
        children=(
            Module(
                name="unfold",
                class_name="Unfold",
                arguments=f"kernel_size=({side}, {side}), dilation=1, padding=0, stride={side}",
            ),
            linear("linear", inputs, hidden, dtype),
        ),
    )
    # A complex number for each pair of channels, in half of them by rows and in half by columns.
    turns = Tensor("freqs_ci", (positions, 1, head_dim // 4 * 2), DType.C64)
    layer = _vision_layer(vision, heads * head_dim, dtype)
    layers = layer_list("layers", [layer] * integer(vision, "num_hidden_layers", at_least=0))
    return Module(
        name="vision_model",
        class_name="Llama4VisionModel",
        tensors=(
            Tensor("class_embedding", (hidden,), dtype),
            Tensor("positional_embedding_vlm", (positions, hidden), dtype),
        ),
        children=(
            patches,
            Module(name="rotary_embedding", class_name="Llama4VisionRotaryEmbedding", buffers=(turns,)),
            layer_norm("layernorm_pre", hidden, dtype, eps="1e-05"),
            layer_norm("layernorm_post", hidden, dtype, eps="1e-05"),
            Module(name="model", class_name="Llama4VisionEncoder", children=(layers,)),
            Module(
                name="vision_adapter", class_name="Llama4VisionPixelShuffleMLP", children=(_adapter(vision, dtype),)
            ),
        ),
    )


def _vision_layer(vision: Mapping[str, Any], rows: int, dtype: DType) -> Module:
    hidden, inner = integer(vision, "hidden_size"), integer(vision, "intermediate_size")
    attention = Module(
        name="self_attn",
        class_name="Llama4VisionAttention",
        children=(
            *(linear(f"{part}_proj", hidden, rows, dtype, bias=True) for part in "qkv"),
            linear("o_proj", rows, hidden, dtype, bias=True),
        ),
    )
    mlp = Module(
        name="mlp",
        class_name="Llama4VisionMLP",
        children=(
            _gelu(),
            linear("fc1", hidden, inner, dtype, bias=True),
            linear("fc2", inner, hidden, dtype, bias=True),
        ),
    )
    return Module(
        name="0",
        class_name="Llama4VisionEncoderLayer",
        children=(
            attention,
            mlp,
            layer_norm("input_layernorm", hidden, dtype, eps="1e-05"),
            layer_norm("post_attention_layernorm", hidden, dtype, eps="1e-05"),
        ),
    )


def _adapter(vision: Mapping[str, Any], dtype: DType) -> Module:
    inner, outputs = integer(vision, "projector_input_dim"), integer(vision, "projector_output_dim")
    return Module(
        name="mlp",
        class_name="Llama4VisionMLP2",
        children=(
            linear("fc1", integer(vision, "intermediate_size"), inner, dtype),
            linear("fc2", outputs, outputs, dtype),
            _gelu(),
        ),
    )


def _gelu() -> Module:
    return Module(name="activation_fn", class_name="GELU", arguments="approximate='none'")
