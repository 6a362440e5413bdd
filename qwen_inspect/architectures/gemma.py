"""Gemma 1, 2 and 3, their decoders: scaled embeddings; from Gemma 2 four norms a layer and alternating windows; in 3 QK-Norm.

Source: transformers 5.23, models/{gemma,gemma2,gemma3}; Gemma (arXiv 2403.08295), Gemma 2 (2408.00118), Gemma 3 (2503.19786).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint import DType, Tensor
from ..errors import UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .blocks import linear
from .design import Architecture, KeptLayer
from .outline import (
    causal_lm,
    check_width,
    embedding,
    frequencies,
    gated_mlp,
    keeps_heads,
    layer_list,
    norm,
    read_heads,
    read_padding,
    read_spans,
    whole_dtype,
    with_defaults,
)
from .reading import check_layer_types, flag, integer, shown

_GEMMA: Mapping[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "attention_bias": False,
}
_GEMMA2: Mapping[str, Any] = {
    **{key: value for key, value in _GEMMA.items() if key != "hidden_act"},
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": {**_GEMMA2, "vocab_size": 262_208, "max_position_embeddings": 131_072},
}
PREFIXES = {"gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3"}


def architecture(config: Mapping[str, Any]) -> Architecture:
    kind, dtype = str(config["model_type"]), whole_dtype(config)
    text = read_text(config, kind)
    # Gemma 2's soft-capped scores leave no sdpa. Source: Gemma2PreTrainedModel._supports_sdpa
    kernel = "eager" if kind == "gemma2" else "sdpa"
    return causal_lm(config, text, decoder(text, kind, dtype, name="model"), kept_layers(text, dtype), kernel=kernel)


def read_text(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The decoder's configuration with the defaults of `kind`, and its layer types."""
    text = with_defaults(config, DEFAULTS[kind])
    layers = integer(text, "num_hidden_layers")
    integer(text, "num_key_value_heads")  # unlike in most classes, null is none
    if kind == "gemma":
        if text["hidden_act"] == "gelu":  # GemmaConfig.__post_init__
            text["hidden_act"] = "gelu_pytorch_tanh"
        return text
    check_width(text)
    if text.get("layer_types") is None:
        key = "sliding_window_pattern"
        every = 2 if kind == "gemma2" else integer({key: 6, **text}, key)
        text["layer_types"] = [
            "sliding_attention" if (index + 1) % every else "full_attention" for index in range(layers)
        ]
    check_layer_types(text["layer_types"], layers, kinds=("full_attention", "sliding_attention"))
    if kind == "gemma3_text" and text.get("use_bidirectional_attention"):
        text["sliding_window"] = integer(text, "sliding_window") // 2 + 1  # Gemma3TextConfig.__post_init__
    return text


def kept_layers(text: Mapping[str, Any], dtype: DType) -> list[KeptLayer]:
    query_heads, kv_heads = read_heads(text)
    return [
        keeps_heads(index, query_heads, kv_heads, integer(text, "head_dim"), dtype, kind=span, window=window)
        for index, (span, window) in enumerate(read_spans(text, integer(text, "num_hidden_layers")))
    ]


def sharing_layers(text: Mapping[str, Any], types: Sequence[str]) -> list[bool]:
    """Whether each layer reads the cache of an earlier one, the last of its type that keeps its own.

    UnsupportedError if none does. Source: transformers 5.23, Gemma3nTextConfig.kv_sharing_modes; Gemma4TextConfig's is the same.
    """
    own = len(types) - integer(text, "num_kv_shared_layers", at_least=0, at_most=len(types))
    if set(types[:own]) != set(types):
        raise UnsupportedError(
            "config_key_unsupported", key="num_kv_shared_layers", found=shown(text["num_kv_shared_layers"])
        )
    return [index >= own for index in range(len(types))]


def unloaded_parts(shares: Sequence[bool]) -> tuple[str, ...]:
    """Stored keys and values of layers that share, which their classes do not load."""
    parts = ("k_proj", "v_proj", "k_norm", "v_norm")
    return tuple(f"layers.{index}.self_attn.{part}" for index, shared in enumerate(shares) if shared for part in parts)


def decoder(text: Mapping[str, Any], kind: str, dtype: DType, *, name: str) -> Module:
    """Embedding, layers, final norm and rotary tables, under `name`."""
    prefix, hidden, eps = PREFIXES[kind], integer(text, "hidden_size"), text["rms_norm_eps"]
    (query_heads, kv_heads), head_dim = read_heads(text), integer(text, "head_dim")
    bias, rows, columns = flag(text, "attention_bias", default=False), query_heads * head_dim, kv_heads * head_dim
    norm_names = ["input_layernorm", "post_attention_layernorm"]
    if kind != "gemma":
        norm_names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    head_norms = ("q_norm", "k_norm") if kind == "gemma3_text" else ()
    layer = Module(
        name="0",
        class_name=f"{prefix}DecoderLayer",
        children=(
            Module(
                name="self_attn",
                class_name=f"{prefix}Attention",
                children=(
                    linear("q_proj", hidden, rows, dtype, bias=bias),
                    linear("k_proj", hidden, columns, dtype, bias=bias),
                    linear("v_proj", hidden, columns, dtype, bias=bias),
                    linear("o_proj", rows, hidden, dtype, bias=bias),
                    *(norm(part, f"{prefix}RMSNorm", head_dim, dtype, eps=eps) for part in head_norms),
                ),
            ),
            gated_mlp(
                "mlp",
                f"{prefix}MLP",
                hidden,
                integer(text, "intermediate_size"),
                text["hidden_act" if kind == "gemma" else "hidden_activation"],
                dtype,
            ),
            *(norm(part, f"{prefix}RMSNorm", hidden, dtype, eps=eps) for part in norm_names),
        ),
    )
    return Module(
        name=name,
        class_name="Gemma3TextModel" if kind == "gemma3_text" else f"{prefix}Model",
        children=(
            scaled_embedding(
                "embed_tokens", integer(text, "vocab_size"), hidden, dtype, read_padding(text), prefix=prefix
            ),
            layer_list("layers", [layer] * integer(text, "num_hidden_layers")),
            norm("norm", f"{prefix}RMSNorm", hidden, dtype, eps=eps),
            _rotary(text, kind, head_dim),
        ),
    )


def scaled_embedding(name: str, rows: int, width: int, dtype: DType, padding: int | None, *, prefix: str) -> Module:
    """A table whose rows are multiplied by a constant, kept as a buffer. Source: Gemma3TextScaledWordEmbedding."""
    table = embedding(name, rows, width, dtype, padding=padding, class_name=f"{prefix}TextScaledWordEmbedding")
    return replace(table, buffers=(Tensor("embed_scale", (), dtype),))


def _rotary(text: Mapping[str, Any], kind: str, head_dim: int) -> Module:
    """One table; in Gemma 3 one for each type of layer."""
    prefixes = [f"{layer_type}_" for layer_type in sorted(set(text["layer_types"]))] if kind == "gemma3_text" else [""]
    buffers = tuple(buffer for prefix in prefixes for buffer in frequencies(head_dim, prefix=prefix))
    return Module(name="rotary_emb", class_name=f"{PREFIXES[kind]}RotaryEmbedding", buffers=buffers)
