"""Gemma 4: layers that differ in their heads, last layers that read the cache of earlier ones, inputs for each layer, and experts
beside an MLP; with a tower for images and one for sound (`gemma4_towers`), or text alone.

Source: transformers 5.23, models/gemma4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint import DType, Tensor
from ..errors import MalformedError
from ..results.cache import CacheKind
from ..spec import Module
from ..typed import Any
from ..values import dataclass
from .blocks import linear
from .design import Architecture
from .gemma import scaled_embedding, sharing_layers, unloaded_parts
from .outline import (
    activation,
    causal_lm,
    experts,
    frequencies,
    gated_mlp,
    keeps_heads,
    keeps_nothing,
    layer_list,
    norm,
    read_heads,
    read_padding,
    whole_dtype,
    with_defaults,
)
from .reading import MOST_HEADS, check_layer_types, flag, integer

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_global_key_value_heads": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "sliding_window": 512,
    "layer_types": None,
    "use_bidirectional_attention": None,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "attention_k_eq_v": False,
    "num_kv_shared_layers": 0,
    "enable_moe_block": False,
    "use_double_wide_mlp": False,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
}
PERSISTENT = (  # of the layers, of clipped linear layers, of a standardising tower
    "layer_scalar",
    *("input_min", "input_max", "output_min", "output_max"),
    *("std_bias", "std_scale"),
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What one layer differs in. shares: it reads the cache of an earlier layer."""

    slides: bool
    kv_heads: int
    head_dim: int
    shares: bool


def architecture(config: Mapping[str, Any]) -> Architecture:
    dtype = whole_dtype(config)
    if config["model_type"] == "gemma4_text":
        text = with_defaults(config, DEFAULTS)
        return _whole(config, text, decoder(text, dtype, name="model"))
    from .gemma4_towers import embedder, hearing, read_part, seeing

    # Tying is read at the top. Source: transformers 5.23, PreTrainedModel.tie_weights
    tied = flag({"tie_word_embeddings": True, **config}, "tie_word_embeddings", default=False)
    text = with_defaults({**(read_part(config, "text_config") or {}), "tie_word_embeddings": tied}, DEFAULTS)
    width, vision, audio = (
        integer(text, "hidden_size"),
        read_part(config, "vision_config"),
        read_part(config, "audio_config"),
    )
    children = (
        None if vision is None else seeing("vision_tower", vision, dtype),
        decoder(text, dtype, name="language_model"),
        None if audio is None else hearing("audio_tower", audio, dtype),
        None if vision is None else embedder("embed_vision", vision, width, dtype),
        None if audio is None else embedder("embed_audio", audio, width, dtype),
    )
    model = Module(name="model", class_name="Gemma4Model", children=tuple(child for child in children if child))
    return _whole(config, text, model, table="language_model.embed_tokens")


def _whole(
    config: Mapping[str, Any], text: Mapping[str, Any], model: Module, table: str = "embed_tokens"
) -> Architecture:
    dtype, query_heads, kinds = whole_dtype(config), integer(text, "num_attention_heads"), _layer_kinds(text)
    window = _window(text)
    spans: list[CacheKind] = ["sliding" if kind.slides else "full" for kind in kinds]
    kept = [
        keeps_nothing(index, "shared")
        if kind.shares
        else keeps_heads(
            index, query_heads, kind.kv_heads, kind.head_dim, dtype, window=window if kind.slides else None, kind=span
        )
        for index, (kind, span) in enumerate(zip(kinds, spans, strict=True))
    ]
    routed = _routed(text)
    return causal_lm(
        config,
        text,
        model,
        kept,
        table=table,
        routed=routed,
        persistent=PERSISTENT,
        unloaded=unloaded_parts([kind.shares for kind in kinds]),
    )


def _routed(text: Mapping[str, Any]) -> tuple[int, int] | None:
    if not flag(text, "enable_moe_block", default=False):
        return None
    count = integer(text, "num_experts", at_most=MOST_HEADS)
    return integer(text, "top_k_experts", at_most=count), count


def _window(text: Mapping[str, Any]) -> int:
    """`sliding_window`, as Gemma4TextConfig.__post_init__ changes it."""
    window = integer(text, "sliding_window", at_least=2)
    return window // 2 + 1 if text["use_bidirectional_attention"] == "all" else window


def _layer_types(text: Mapping[str, Any]) -> list[str]:
    """Every sixth layer is full by default, the last always. Source: Gemma4TextConfig.__post_init__."""
    layers, types = integer(text, "num_hidden_layers"), text["layer_types"]
    if types is None:
        types = ["sliding_attention" if (index + 1) % 6 else "full_attention" for index in range(layers)]
    check_layer_types(types, layers, kinds=("full_attention", "sliding_attention"))
    return [*types[:-1], "full_attention"]


def _layer_kinds(text: Mapping[str, Any]) -> list[_Kind]:
    """What each layer differs in. Source: Gemma4TextConfig.__post_init__."""
    types = _layer_types(text)
    shares = sharing_layers(text, types)
    kv_heads = global_kv_heads = integer(text, "num_key_value_heads")
    if flag(text, "attention_k_eq_v", default=False) and text["num_global_key_value_heads"] is not None:
        global_kv_heads = integer(text, "num_global_key_value_heads")
    for heads in (kv_heads, global_kv_heads):
        read_heads({**text, "num_key_value_heads": heads})
    head_dim, global_head_dim = integer(text, "head_dim"), integer(text, "global_head_dim")
    return [
        _Kind(True, kv_heads, head_dim, shared)
        if kind == "sliding_attention"
        else _Kind(False, global_kv_heads, global_head_dim, shared)
        for kind, shared in zip(types, shares, strict=True)
    ]


def decoder(text: Mapping[str, Any], dtype: DType, *, name: str) -> Module:
    """Embeddings, also for each layer, layers, final norm and rotary tables, under `name`."""
    hidden, kinds = integer(text, "hidden_size"), _layer_kinds(text)
    layer_of = {kind: _layer(text, kind, dtype) for kind in dict.fromkeys(kinds)}
    return Module(
        name=name,
        class_name="Gemma4TextModel",
        children=(
            _table("embed_tokens", integer(text, "vocab_size"), hidden, text, dtype),
            layer_list("layers", [layer_of[kind] for kind in kinds]),
            _norm("norm", hidden, dtype),
            _rotary(text, kinds),
            *_inputs_of_layers(text, len(kinds), dtype),
        ),
    )


def _inputs_of_layers(text: Mapping[str, Any], layers: int, dtype: DType) -> tuple[Module, ...]:
    """A second, packed table and projection: a small input for each layer."""
    if not (width := integer(text, "hidden_size_per_layer_input", at_least=0)):
        return ()
    rows, hidden = integer(text, "vocab_size_per_layer_input"), integer(text, "hidden_size")
    return (
        _table("embed_tokens_per_layer", rows, layers * width, text, dtype),
        linear("per_layer_model_projection", hidden, layers * width, dtype),
        _norm("per_layer_projection_norm", width, dtype),
    )


def _layer(text: Mapping[str, Any], kind: _Kind, dtype: DType) -> Module:
    hidden, act = integer(text, "hidden_size"), text["hidden_activation"]
    wide = kind.shares and flag(text, "use_double_wide_mlp", default=False)
    inputs = integer(text, "hidden_size_per_layer_input", at_least=0)
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    with_inputs = (
        activation("act_fn", act),
        linear("per_layer_input_gate", hidden, inputs, dtype),
        linear("per_layer_projection", inputs, hidden, dtype),
        _norm("post_per_layer_input_norm", hidden, dtype),
    )
    mlp_width = integer(text, "intermediate_size") * (2 if wide else 1)
    return Module(
        name="0",
        class_name="Gemma4TextDecoderLayer",
        buffers=(Tensor("layer_scalar", (1,), dtype),),
        children=(
            _attention(text, kind, dtype),
            gated_mlp("mlp", "Gemma4TextMLP", hidden, mlp_width, act, dtype),
            *(_norm(name, hidden, dtype) for name in norms),
            *(with_inputs if inputs else ()),
            *_sparse_block(text, dtype),
        ),
    )


def _attention(text: Mapping[str, Any], kind: _Kind, dtype: DType) -> Module:
    """Keys and values only in layers with a cache of their own; in a full layer the keys may be the values."""
    hidden, bias = integer(text, "hidden_size"), flag(text, "attention_bias", default=False)
    rows, columns = integer(text, "num_attention_heads") * kind.head_dim, kind.kv_heads * kind.head_dim
    keys_are_values = flag(text, "attention_k_eq_v", default=False) and not kind.slides
    own = (
        _norm("k_norm", kind.head_dim, dtype),
        Module(name="v_norm", class_name="Gemma4RMSNorm"),
        linear("k_proj", hidden, columns, dtype, bias=bias),
        *(() if keys_are_values else (linear("v_proj", hidden, columns, dtype, bias=bias),)),
    )
    return Module(
        name="self_attn",
        class_name="Gemma4TextAttention",
        children=(
            linear("q_proj", hidden, rows, dtype, bias=bias),
            _norm("q_norm", kind.head_dim, dtype),
            *(() if kind.shares else own),
            linear("o_proj", rows, hidden, dtype, bias=bias),
        ),
    )


def _sparse_block(text: Mapping[str, Any], dtype: DType) -> tuple[Module, ...]:
    """Router and experts beside the MLP, and their norms."""
    if (routed := _routed(text)) is None:
        return ()
    hidden, count, inner = integer(text, "hidden_size"), routed[1], integer(text, "moe_intermediate_size")
    router = Module(
        name="router",
        class_name="Gemma4TextRouter",
        tensors=(Tensor("scale", (hidden,), dtype), Tensor("per_expert_scale", (count,), dtype)),
        children=(Module(name="norm", class_name="Gemma4RMSNorm"), linear("proj", hidden, count, dtype)),
    )
    names = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
    return (
        router,
        experts("experts", "Gemma4TextExperts", count, hidden, inner, text["hidden_activation"], dtype),
        *(_norm(name, hidden, dtype) for name in names),
    )


def _norm(name: str, width: int, dtype: DType) -> Module:
    return norm(name, "Gemma4RMSNorm", width, dtype, arguments="")


def _table(name: str, rows: int, width: int, text: Mapping[str, Any], dtype: DType) -> Module:
    padding = read_padding({**text, "vocab_size": rows})
    return scaled_embedding(name, rows, width, dtype, padding, prefix="Gemma4")


def _rotary(text: Mapping[str, Any], kinds: Sequence[_Kind]) -> Module:
    """A table for each type of layer that turns. Source: Gemma4TextRotaryEmbedding."""
    dims = {"sliding_attention" if kind.slides else "full_attention": kind.head_dim for kind in kinds}
    ropes = text.get("rope_parameters") or {kind: {} for kind in dims}
    if missing := [kind for kind in dims if kind not in ropes]:
        raise MalformedError("config_key_missing", key=f"rope_parameters.{missing[0]}", model_type="gemma4_text")
    buffers = [
        buffer
        for kind in sorted(dims)
        if ropes[kind] is not None
        for buffer in frequencies(dims[kind], prefix=f"{kind}_")
    ]
    return Module(name="rotary_emb", class_name="Gemma4TextRotaryEmbedding", buffers=tuple(buffers))
