"""Reading a configuration strictly: what stands there, or a sentence that says what should.

Defaults are transformers' own, and only for keys whose absence it gives a meaning.
Source: transformers 5.23, models/{qwen2,qwen2_moe,qwen3,qwen3_moe}/configuration_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..checkpoint import DTYPE_OF_TORCH_NAME, DType
from ..errors import MalformedError, UnsupportedError
from ..spec import Attention, DenseMlp, FullAttention, Layer, Mlp, ModelSpec, MoeMlp, SlidingAttention

# No released model comes near these; a larger value is a damaged or hostile file.
LARGEST_SIZE = 1 << 31
MOST_LAYERS = 10_000
MOST_HEADS = 1 << 16
MOST_EXPERTS = 1 << 20  # over all layers; Kimi-K2 has 23,040

# Class that ACT2FN builds for a name of `hidden_act`. Source: transformers 5.23, activations.ACT2CLS.
ACTIVATION_CLASSES: Mapping[str, str] = {
    "silu": "SiLUActivation",
    "swish": "SiLU",
    "gelu": "GELUActivation",
    "gelu_new": "NewGELUActivation",
    "gelu_pytorch_tanh": "GELUTanh",
    "relu": "ReLU",
    "relu2": "ReLUSquaredActivation",
}


def integer(config: Mapping[str, Any], key: str, *, at_least: int = 1, at_most: int = LARGEST_SIZE) -> int:
    """`config[key]`, a whole number within bounds; MalformedError says what stands there instead."""
    if key not in config:
        raise MalformedError("config_key_missing", key=key, model_type=config.get("model_type"))
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedError("config_not_integer", key=key, found=shown(value))
    if not at_least <= value <= at_most:
        raise MalformedError("config_out_of_range", key=key, found=shown(value), least=at_least, most=at_most)
    return value


def optional_integer(
    config: Mapping[str, Any], key: str, *, at_least: int = 0, at_most: int = LARGEST_SIZE
) -> int | None:
    """`config[key]`, or None where the key is missing or null."""
    return None if config.get(key) is None else integer(config, key, at_least=at_least, at_most=at_most)


def flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """`config[key]`, true or false; `default` is transformers' own for a key that is missing or null."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise MalformedError("config_not_flag", key=key, found=shown(value))
    return value


def number(config: Mapping[str, Any], key: str, *, default: float) -> float:
    """`config[key]` as a finite number not below 0; `default` is transformers' own for a missing key."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise MalformedError("config_not_number", key=key, found=shown(value))
    return value


def shown(value: object) -> str:
    """A hostile value, short: a string of 10^30 digits is not repeated."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_dtype(config: Mapping[str, Any]) -> DType:
    """The dtype of the parameters: `dtype` (transformers 5) or `torch_dtype`; float32, torch's default, where neither is set.

    Source: transformers 5.23, modeling_utils._from_config and PreTrainedConfig.dtype.
    """
    key = "dtype" if config.get("dtype") is not None else "torch_dtype"
    name = config.get(key)
    if name is None:
        return DType.F32
    if not isinstance(name, str):
        raise MalformedError("config_not_dtype", key=key, found=shown(name))
    dtype = DTYPE_OF_TORCH_NAME.get(name.removeprefix("torch."))
    if dtype not in (DType.BF16, DType.F16, DType.F32, DType.F64):
        raise UnsupportedError("config_dtype_unsupported", key=key, found=shown(name))
    return dtype


def read_decoder(
    config: Mapping[str, Any],
    *,
    prefix: str,
    head_dim: int,
    qkv_bias: bool,
    output_bias: bool,
    qk_norm: bool,
    windows: Callable[[int], list[int | None]],
    mlps: Callable[[int], list[Mlp]],
) -> ModelSpec:
    """The spec of a decoder, from what all these families name alike and from what the caller read of its own.

    windows, mlps: from the number of layers, each layer's attention window (None: all tokens) and MLP.
    """
    layers = integer(config, "num_hidden_layers", at_most=MOST_LAYERS)
    query_heads = integer(config, "num_attention_heads", at_most=MOST_HEADS)
    # Null means as many KV heads as query heads. (Missing, transformers would take its class default: an error here.)
    # Source: Qwen3Config.__post_init__.
    shared = config.get("num_key_value_heads", 0) is not None
    kv_heads = integer(config, "num_key_value_heads", at_most=MOST_HEADS) if shared else query_heads
    if query_heads % kv_heads:
        raise MalformedError("config_heads_do_not_divide", query_heads=query_heads, kv_heads=kv_heads)

    def attention(window: int | None) -> Attention:
        shape = {"query_heads": query_heads, "kv_heads": kv_heads, "head_dim": head_dim}
        if window is None:
            return FullAttention(**shape, qkv_bias=qkv_bias, output_bias=output_bias, qk_norm=qk_norm)
        return SlidingAttention(
            **shape, qkv_bias=qkv_bias, output_bias=output_bias, qk_norm=qk_norm, window_tokens=window
        )

    activation = config.get("hidden_act", "silu")
    if not isinstance(activation, str) or activation not in ACTIVATION_CLASSES:
        raise UnsupportedError("activation_unsupported", found=shown(activation), known=", ".join(ACTIVATION_CLASSES))
    return ModelSpec(
        family=str(config["model_type"]),
        class_name=read_class_name(config, prefix),
        class_prefix=prefix,
        vocab_size=integer(config, "vocab_size"),
        hidden_size=integer(config, "hidden_size"),
        context_tokens=optional_integer(config, "max_position_embeddings", at_least=1),
        tied_embeddings=flag(config, "tie_word_embeddings", default=False),
        dtype=read_dtype(config),
        norm_eps=number(config, "rms_norm_eps", default=1e-6),
        activation=activation,
        # nn.Embedding asserts that the padding is in the table.
        pad_token_id=optional_integer(config, "pad_token_id", at_most=integer(config, "vocab_size") - 1),
        layers=tuple(
            Layer(attention=attention(window), mlp=mlp)
            for window, mlp in zip(windows(layers), mlps(layers), strict=True)
        ),
    )


def read_class_name(config: Mapping[str, Any], prefix: str) -> str:
    """The class that `architectures` names, if it is the causal LM or the bare decoder; the causal LM where it names none."""
    names = config.get("architectures") or [f"{prefix}ForCausalLM"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MalformedError("config_architectures", found=shown(names))
    if names[0] not in (f"{prefix}ForCausalLM", f"{prefix}Model"):
        raise UnsupportedError("class_unsupported", found=names[0], known=f"{prefix}ForCausalLM, {prefix}Model")
    return str(names[0])


def read_head_dim(config: Mapping[str, Any]) -> int:
    """`head_dim` where the configuration has it, else hidden_size / num_attention_heads.

    Source: transformers 5.23, getattr(config, "head_dim", hidden_size // num_attention_heads) in each attention class.
    """
    if config.get("head_dim") is not None:
        return integer(config, "head_dim", at_most=MOST_HEADS)
    hidden = integer(config, "hidden_size")
    heads = integer(config, "num_attention_heads", at_most=MOST_HEADS)
    if hidden % heads:
        raise MalformedError("config_no_head_dim", hidden=hidden, heads=heads)
    return hidden // heads


def read_layer_types(
    config: Mapping[str, Any], layers: int, *, window: int | None, default: Callable[[int], bool]
) -> list[int | None]:
    """Each layer's window: by `layer_types` where given, else `window` on the layers for which `default` is true."""
    types = config.get("layer_types")
    if types is None:
        return [window if window is not None and default(index) else None for index in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise MalformedError(
            "config_layer_types", layers=layers, found=len(types) if isinstance(types, list) else shown(types)
        )
    if unknown := [kind for kind in types if kind not in ("full_attention", "sliding_attention")]:
        raise UnsupportedError(
            "layer_type_unsupported", found=shown(unknown[0]), known="full_attention, sliding_attention"
        )
    if window is None and "sliding_attention" in types:
        raise MalformedError("config_window_missing")
    return [window if kind == "sliding_attention" else None for kind in types]


def read_window(config: Mapping[str, Any]) -> int | None:
    """`sliding_window`, which counts only where `use_sliding_window` is true."""
    if not flag(config, "use_sliding_window", default=False):
        return None
    # A window of 1 would keep every token: transformers 5.23 slices the cache by [-window + 1:], and [-0:] is all of it.
    return optional_integer(config, "sliding_window", at_least=2)


def dense_mlps(config: Mapping[str, Any]) -> Callable[[int], list[Mlp]]:
    return lambda layers: [DenseMlp(intermediate_size=integer(config, "intermediate_size"))] * layers


def sparse_mlps(config: Mapping[str, Any], *, experts_key: str, shared_size: int | None) -> Callable[[int], list[Mlp]]:
    """Each layer's MLP: experts on every `decoder_sparse_step`th layer that `mlp_only_layers` does not name.

    Source: transformers 5.23, Qwen2MoeDecoderLayer.__init__ and Qwen3MoeDecoderLayer.__init__.
    """
    named = config.get("mlp_only_layers") or []
    if not isinstance(named, list) or not all(isinstance(index, int) for index in named):
        raise MalformedError("config_mlp_only_layers", found=shown(named))
    dense_only = set(named)
    step = integer(config, "decoder_sparse_step") if config.get("decoder_sparse_step") is not None else 1
    experts = integer(config, experts_key, at_least=0, at_most=MOST_HEADS)
    layers = integer(config, "num_hidden_layers", at_most=MOST_LAYERS)
    if layers * experts > MOST_EXPERTS:
        raise MalformedError("config_too_many_experts", layers=layers, experts=experts, most=MOST_EXPERTS)
    taken = integer(config, "num_experts_per_tok", at_most=experts) if experts else 0

    def mlp(index: int) -> Mlp:
        if index in dense_only or experts == 0 or (index + 1) % step:
            return DenseMlp(intermediate_size=integer(config, "intermediate_size"))
        return MoeMlp(
            experts=experts,
            experts_per_token=taken,
            intermediate_size=integer(config, "moe_intermediate_size"),
            shared_intermediate_size=shared_size,
        )

    return lambda layers: [mlp(index) for index in range(layers)]
