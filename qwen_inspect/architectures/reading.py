"""Reads configurations strictly: a valid value, or an error that says what was expected.

Defaults are those of transformers, and only for keys that it allows to be absent.
Source: transformers 5.23, models/qwen*/configuration_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..checkpoint import DTYPE_OF_TORCH_NAME, DType
from ..errors import MalformedError, UnsupportedError
from ..spec import (
    Attention,
    DenseMlp,
    FullAttention,
    GatedAttention,
    Layer,
    LinearAttention,
    Mlp,
    ModelSpec,
    MoeMlp,
    SlidingAttention,
)
from ..typed import Any
from .families import CLASSES, TEXTS
from .saved_heads import SAVED, as_released

# Far above every released model: a larger value means a damaged or hostile file.
LARGEST_SIZE = 1 << 31
LARGEST_NUMBER = 10**18  # its products with sizes are finite
MOST_LAYERS = 400  # Llama-3.1-405B has 126, mlabonne/BigLlama-3.1-1T-Instruct 315
MOST_HEADS = 1 << 16
MOST_EXPERTS = 1 << 16  # over all layers; Kimi-K2 has 23,040

# Class that ACT2FN builds for a name of `hidden_act`. Source: transformers 5.23, activations.ACT2CLS.
ACTIVATION_CLASSES: Mapping[str, str] = {
    "silu": "SiLUActivation",
    "swish": "SiLU",
    "gelu": "GELUActivation",
    "gelu_new": "NewGELUActivation",
    "gelu_pytorch_tanh": "GELUTanh",
    "quick_gelu": "QuickGELUActivation",
    "relu": "ReLU",
    "relu2": "ReLUSquaredActivation",
}


def integer(config: Mapping[str, Any], key: str, *, at_least: int = 1, at_most: int = LARGEST_SIZE) -> int:
    """`config[key]`, an integer within bounds; MalformedError, with the value, for anything else."""
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
    """`config[key]`, or None if the key is missing or null."""
    return None if config.get(key) is None else integer(config, key, at_least=at_least, at_most=at_most)


def flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """`config[key]`, true or false; `default`, for a missing or null key, is that of transformers."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise MalformedError("config_not_flag", key=key, found=shown(value))
    return value


def number(config: Mapping[str, Any], key: str, *, default: float) -> float:
    """`config[key]`, a number from 0 to LARGEST_NUMBER; `default`, for a missing key, is that of transformers."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise MalformedError("config_not_number", key=key, found=shown(value))
    if value > LARGEST_NUMBER:
        raise MalformedError("config_out_of_range", key=key, found=shown(value), least=0, most=LARGEST_NUMBER)
    return value


def shown(value: object) -> str:
    """`value` in at most 60 characters, safe for hostile values such as an integer of 10^30 digits."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_dtype(config: Mapping[str, Any]) -> DType:
    """The dtype of the parameters: `dtype` (transformers 5) or `torch_dtype`; float32, torch's default, if neither is set.

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


def whole_dtype(config: Mapping[str, Any]) -> DType:
    """The parameters' dtype: the top-level key, else the decoder's in a composite model, else torch's default."""
    nested: Mapping[str, Any] = next(
        (config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), Mapping)), {}
    )
    keys = ("dtype", "torch_dtype")
    return read_dtype(
        next((part for part in (config, nested) if any(part.get(key) is not None for key in keys)), config)
    )


def not_halved(dtype: DType) -> DType:
    """The dtype of what transformers keeps in float32 when it loads a model in float16, and in no other dtype.

    Source: transformers 5.23, PreTrainedModel._keep_in_fp32_modules.
    """
    return DType.F32 if dtype is DType.F16 else dtype


def read_decoder(
    config: Mapping[str, Any],
    *,
    prefix: str,
    attentions: Callable[[int], list[Attention]],
    mlps: Callable[[int], list[Mlp]],
) -> ModelSpec:
    """The spec of a decoder: the keys that all families share, and the attentions and MLPs that the caller reads.

    attentions, mlps: functions from the number of layers to each layer's attention and MLP.
    """
    layers = integer(config, "num_hidden_layers", at_most=MOST_LAYERS)
    return ModelSpec(
        family=str(config["model_type"]),
        class_name=read_class_name(config),
        class_prefix=prefix,
        vocab_size=integer(config, "vocab_size"),
        hidden_size=integer(config, "hidden_size"),
        context_tokens=optional_integer(config, "max_position_embeddings", at_least=1),
        tied_embeddings=flag(config, "tie_word_embeddings", default=False),
        dtype=read_dtype(config),
        norm_eps=number(config, "rms_norm_eps", default=1e-6),
        activation=read_activation(config, default="silu"),
        # nn.Embedding asserts that padding_idx is within the table.
        pad_token_id=optional_integer(config, "pad_token_id", at_most=integer(config, "vocab_size") - 1),
        layers=tuple(
            Layer(attention=attention, mlp=mlp) for attention, mlp in zip(attentions(layers), mlps(layers), strict=True)
        ),
    )


def read_activation(config: Mapping[str, Any], *, default: str) -> str:
    name = config.get("hidden_act", default)
    if not isinstance(name, str) or name not in ACTIVATION_CLASSES:
        raise UnsupportedError("activation_unsupported", found=shown(name), known=", ".join(ACTIVATION_CLASSES))
    return name


def read_heads(config: Mapping[str, Any]) -> tuple[int, int]:
    """(query heads, KV heads); the KV heads divide the query heads."""
    query_heads = integer(config, "num_attention_heads", at_most=MOST_HEADS)
    return query_heads, _kv_heads(config, query_heads)


def read_kv_heads(config: Mapping[str, Any], layers: int, query_heads: int) -> list[int]:
    """Each layer's KV heads, from one number for all layers or, in GGUF metadata, a list."""
    heads = config.get("num_key_value_heads", 0)
    if isinstance(heads, list) and "general.architecture" in config:
        if len(heads) != layers:
            raise MalformedError("gguf_per_layer", key="num_key_value_heads", found=len(heads), layers=layers)
        return [_kv_heads({**config, "num_key_value_heads": layer_heads}, query_heads) for layer_heads in heads]
    return [_kv_heads(config, query_heads)] * layers


def _kv_heads(config: Mapping[str, Any], query_heads: int) -> int:
    """KV heads; null means the number of query heads. A missing key is an error, though transformers has a class default.

    Source: Qwen3Config.__post_init__.
    """
    shared = config.get("num_key_value_heads", 0) is not None
    kv_heads = integer(config, "num_key_value_heads", at_most=MOST_HEADS) if shared else query_heads
    if query_heads % kv_heads:
        raise MalformedError("config_heads_do_not_divide", query_heads=query_heads, kv_heads=kv_heads)
    return kv_heads


def softmax_attentions(
    config: Mapping[str, Any],
    *,
    head_dim: int,
    qkv_bias: bool,
    output_bias: bool,
    qk_norm: bool,
    windows: Callable[[int], list[int | None]],
) -> Callable[[int], list[Attention]]:
    """Full or sliding attention for each layer. windows: from the number of layers to each layer's window (None: all tokens)."""
    query_heads = integer(config, "num_attention_heads", at_most=MOST_HEADS)

    def attention(window: int | None, kv_heads: int) -> Attention:
        shape = {"query_heads": query_heads, "kv_heads": kv_heads, "head_dim": head_dim}
        if window is None:
            return FullAttention(**shape, qkv_bias=qkv_bias, output_bias=output_bias, qk_norm=qk_norm)
        return SlidingAttention(
            **shape, qkv_bias=qkv_bias, output_bias=output_bias, qk_norm=qk_norm, window_tokens=window
        )

    return lambda layers: [
        attention(window, kv_heads)
        for window, kv_heads in zip(windows(layers), read_kv_heads(config, layers, query_heads), strict=True)
    ]


def hybrid_attentions(config: Mapping[str, Any], *, fused_projections: bool) -> Callable[[int], list[Attention]]:
    """Gated full attention on the layers that `layer_types` names, else on every fourth; linear attention on the rest.

    Source: Qwen3NextConfig and Qwen3_5TextConfig, __post_init__ and class defaults.
    """
    query_heads, kv_heads = read_heads(config)
    # Null is an error: transformers keeps None and derives no head_dim from it.
    head_dim = integer(config, "head_dim", at_most=MOST_HEADS) if "head_dim" in config else 256
    bias = flag(config, "attention_bias", default=False)
    full = GatedAttention(
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=bias,
        output_bias=bias,
        rotary_dim=_rotary_dim(config, head_dim),
    )

    def linear(key: str, default: int) -> int:
        return integer(config, key, at_most=MOST_HEADS) if key in config else default

    state = LinearAttention(
        key_heads=linear("linear_num_key_heads", 16),
        value_heads=linear("linear_num_value_heads", 32),
        key_head_dim=linear("linear_key_head_dim", 128),
        value_head_dim=linear("linear_value_head_dim", 128),
        conv_kernel=linear("linear_conv_kernel_dim", 4),
        fused_projections=fused_projections,
    )
    if state.value_heads % state.key_heads:
        raise MalformedError(
            "config_linear_heads_do_not_divide", value_heads=state.value_heads, key_heads=state.key_heads
        )
    return lambda layers: [full if kind == "full_attention" else state for kind in _hybrid_types(config, layers)]


def _hybrid_types(config: Mapping[str, Any], layers: int) -> list[str]:
    types = config.get("layer_types")
    if types is None:
        is_set = config.get("full_attention_interval") is not None
        interval = integer(config, "full_attention_interval") if is_set else 4
        types = ["linear_attention" if (index + 1) % interval else "full_attention" for index in range(layers)]
    check_layer_types(types, layers, kinds=("linear_attention", "full_attention"))
    if "full_attention" not in types:
        raise UnsupportedError("config_all_linear")
    return list(types)


def _rotary_dim(config: Mapping[str, Any], head_dim: int) -> int:
    """The channels of a head that RoPE rotates; a quarter by default.

    Source: transformers 5.23, RotaryEmbeddingConfigMixin.convert_rope_params_to_dict (rope_scaling, then rope_parameters, then
    the key beside them), and compute_default_rope_parameters.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise MalformedError("config_not_object", key="rope_parameters", found=shown(rope))
    source = rope if "partial_rotary_factor" in rope else config
    dim = int(head_dim * number(source, "partial_rotary_factor", default=0.25))
    if not 1 <= dim <= head_dim:
        raise MalformedError("config_rotary_dim", found=dim, head_dim=head_dim)
    return dim


def read_class_name(config: Mapping[str, Any]) -> str:
    """The class that `architectures` names, else the default class of the model_type."""
    names = config.get("architectures") or [CLASSES[config["model_type"]][0]]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MalformedError("config_architectures", found=shown(names))
    return str(names[0])


def class_prefix_of(class_name: str) -> str:
    """A class's name up to its task: Qwen3 of Qwen3ForCausalLM, GPT2 of GPT2LMHeadModel."""
    for index in range(len(class_name)):
        task = class_name[index:]
        is_named = task.startswith("LMHead") or (task.startswith("For") and "A" <= task[3:4] <= "Z")
        if task in ("Model", "LM") or (is_named and task.replace("_", "").isalnum()):
            return class_name[:index] or class_name
    return class_name


def is_described(config: Mapping[str, Any]) -> bool:
    """Whether the class of `config` is described here; never if layers differ in more than their types, or if the decoder within
    is of a type that is not known there.

    Source: transformers 5.23, HeterogeneousConfigMixin: `per_layer_config` changes any key for single layers.
    """
    classes = CLASSES.get(config["model_type"])
    if classes is None or read_class_name(config) not in classes:
        return False
    config, known = as_released(config), TEXTS.get(config["model_type"])
    text = config.get("text_config")
    if known and isinstance(text, Mapping) and text.get("model_type") not in (None, *known):
        return False
    return not any(isinstance(part, Mapping) and part.get(SAVED) for part in (config, text))


def read_head_dim(config: Mapping[str, Any]) -> int:
    """`head_dim` if the configuration has it, else hidden_size / num_attention_heads.

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
    """Each layer's window: by `layer_types` if set, else `window` on the layers for which `default` is true."""
    types = config.get("layer_types")
    if types is None:
        return [window if window is not None and default(index) else None for index in range(layers)]
    check_layer_types(types, layers, kinds=("full_attention", "sliding_attention"))
    if window is None and "sliding_attention" in types:
        raise MalformedError("config_window_missing")
    return [window if kind == "sliding_attention" else None for kind in types]


def check_layer_types(types: object, layers: int, *, kinds: tuple[str, ...], key: str = "layer_types") -> None:
    """Raises unless `types`, of the key `key`, is a list of `layers` entries, each one of `kinds`."""
    if not isinstance(types, list) or len(types) != layers:
        raise MalformedError(
            "config_layer_types", key=key, layers=layers, found=len(types) if isinstance(types, list) else shown(types)
        )
    if unknown := [kind for kind in types if kind not in kinds]:
        raise UnsupportedError("layer_type_unsupported", key=key, found=shown(unknown[0]), known=", ".join(kinds))


def read_window(config: Mapping[str, Any]) -> int | None:
    """`sliding_window` in tokens; None unless `use_sliding_window` is true."""
    if not flag(config, "use_sliding_window", default=False):
        return None
    # A window of 1 would keep every token: transformers 5.23 slices the cache by [-window + 1:], and [-0:] is all of it.
    return optional_integer(config, "sliding_window", at_least=2) if "sliding_window" in config else 4096


def dense_mlps(config: Mapping[str, Any]) -> Callable[[int], list[Mlp]]:
    return lambda layers: [DenseMlp(intermediate_size=integer(config, "intermediate_size"))] * layers


def experts_key(config: Mapping[str, Any]) -> str:
    """The key of the expert count: transformers 5 writes `num_local_experts`, and reads both.

    Source: Qwen3MoeConfig.attribute_map.
    """
    return "num_local_experts" if config.get("num_local_experts") is not None else "num_experts"


def sparse_mlps(config: Mapping[str, Any], *, experts_key: str, shared_size: int | None) -> Callable[[int], list[Mlp]]:
    """Each layer's MLP: experts on every `decoder_sparse_step`th layer that is not in `mlp_only_layers`.

    Source: transformers 5.23, Qwen2MoeDecoderLayer.__init__ and Qwen3MoeDecoderLayer.__init__.
    """
    dense_layers = config.get("mlp_only_layers") or []
    if not isinstance(dense_layers, list) or not all(isinstance(index, int) for index in dense_layers):
        raise MalformedError("config_mlp_only_layers", found=shown(dense_layers))
    dense_only = set(dense_layers)
    step = integer(config, "decoder_sparse_step") if config.get("decoder_sparse_step") is not None else 1
    experts = integer(config, experts_key, at_least=0, at_most=MOST_HEADS)
    layers = integer(config, "num_hidden_layers", at_most=MOST_LAYERS)
    if layers * experts > MOST_EXPERTS:
        raise MalformedError("config_too_many_experts", layers=layers, experts=experts, most=MOST_EXPERTS)
    per_token = integer(config, "num_experts_per_tok", at_most=experts) if experts else 0

    def mlp(index: int) -> Mlp:
        if index in dense_only or experts == 0 or (index + 1) % step:
            return DenseMlp(intermediate_size=integer(config, "intermediate_size"))
        return MoeMlp(
            experts=experts,
            experts_per_token=per_token,
            intermediate_size=integer(config, "moe_intermediate_size"),
            shared_intermediate_size=shared_size,
        )

    return lambda layers: [mlp(index) for index in range(layers)]


def part(config: Mapping[str, Any], key: str, *, model_types: tuple[str, ...]) -> Mapping[str, Any]:
    """The configuration nested under `key`; its model_type, if it has one, must be among `model_types`.

    Errors name its keys without `key` before them.
    """
    nested = config.get(key)
    if not isinstance(nested, Mapping):
        raise MalformedError("config_not_object", key=key, found=shown(nested))
    kind = nested.get("model_type")
    if kind is not None and kind not in model_types:
        raise UnsupportedError("config_part_unsupported", key=key, found=shown(kind), known=", ".join(model_types))
    return nested


def part_type(nested: Mapping[str, Any], key: str, *, model_types: tuple[str, ...], default: str) -> str:
    """The type of a part whose class follows from it, of those that `part` lets pass; `default` if it states none, and an error
    if that is null.

    Source: transformers 5.23, SubConfigSpec.create_subconfig
    """
    kind = nested.get("model_type", default)
    if kind not in model_types:
        raise UnsupportedError("config_part_unsupported", key=key, found=shown(kind), known=", ".join(model_types))
    return str(kind)


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's configuration, with the keys that transformers reads at the top: class, tying, dtype, quantisation.

    A top-level dtype holds for every part; without it, the decoder's own counts.
    Source: transformers 5.23, modeling_utils: tie_weights reads the outermost configuration, from_pretrained its dtype.
    """
    family = str(config["model_type"])
    nested = part(config, "text_config", model_types=(f"{family}_text",))
    own = ("model_type", "architectures", "tie_word_embeddings")
    text = {key: value for key, value in nested.items() if key not in own}
    whole = {key: config[key] for key in own if key in config}
    for keys in (("dtype", "torch_dtype"), ("quantization_config",)):
        top_values = {key: config[key] for key in keys if config.get(key) is not None}
        if top_values:
            text = {**{key: value for key, value in text.items() if key not in keys}, **top_values}
    return {**text, **whole}
