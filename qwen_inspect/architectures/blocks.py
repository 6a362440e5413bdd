"""What the families share: reading a configuration strictly, and the modules of a decoder.

The tree, its order, its class names and what stands between the brackets are as `print(model)` gives them.
Source: transformers 5.23, models/{qwen2,qwen2_moe,qwen3,qwen3_moe}/modeling_*.py; torch 2.13, nn.Linear.extra_repr.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

from ..checkpoint import DTYPE_OF_TORCH_NAME, DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import (
    Attention,
    DenseMlp,
    FullAttention,
    Layer,
    Mlp,
    ModelSpec,
    Module,
    MoeMlp,
    SlidingAttention,
)

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


# --- reading a configuration ---------------------------------------------------------------------------------------


def integer(config: Mapping[str, Any], key: str, *, at_least: int = 1, at_most: int = LARGEST_SIZE) -> int:
    """`config[key]`, a whole number within bounds; MalformedError says what stands there instead."""
    if key not in config:
        raise MalformedError("config_key_missing", key=key, model_type=config.get("model_type"))
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedError("config_not_integer", key=key, found=_shown(value))
    if not at_least <= value <= at_most:
        raise MalformedError("config_out_of_range", key=key, found=_shown(value), least=at_least, most=at_most)
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
        raise MalformedError("config_not_flag", key=key, found=_shown(value))
    return value


def number(config: Mapping[str, Any], key: str, *, default: float) -> float:
    """`config[key]` as a finite number not below 0; `default` is transformers' own for a missing key."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise MalformedError("config_not_number", key=key, found=_shown(value))
    return value


def _shown(value: object) -> str:
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
        raise MalformedError("config_not_dtype", key=key, found=_shown(name))
    dtype = DTYPE_OF_TORCH_NAME.get(name.removeprefix("torch."))
    if dtype not in (DType.BF16, DType.F16, DType.F32, DType.F64):
        raise UnsupportedError("config_dtype_unsupported", key=key, found=_shown(name))
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
    if config.get("quantization_config") is not None:
        raise UnsupportedError("quantised_unsupported", found=_quantisation_method(config["quantization_config"]))
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
        raise UnsupportedError("activation_unsupported", found=_shown(activation), known=", ".join(ACTIVATION_CLASSES))
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
        pad_token_id=optional_integer(config, "pad_token_id"),
        layers=tuple(
            Layer(attention=attention(window), mlp=mlp)
            for window, mlp in zip(windows(layers), mlps(layers), strict=True)
        ),
    )


def _quantisation_method(quantization: object) -> str:
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    return method if isinstance(method, str) else "quantization_config"


def read_class_name(config: Mapping[str, Any], prefix: str) -> str:
    """The class that `architectures` names, if it is the causal LM or the bare decoder; the causal LM where it names none."""
    names = config.get("architectures") or [f"{prefix}ForCausalLM"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MalformedError("config_architectures", found=_shown(names))
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
            "config_layer_types", layers=layers, found=len(types) if isinstance(types, list) else _shown(types)
        )
    if unknown := [kind for kind in types if kind not in ("full_attention", "sliding_attention")]:
        raise UnsupportedError(
            "layer_type_unsupported", found=_shown(unknown[0]), known="full_attention, sliding_attention"
        )
    if window is None and "sliding_attention" in types:
        raise MalformedError("config_window_missing")
    return [window if kind == "sliding_attention" else None for kind in types]


def read_window(config: Mapping[str, Any]) -> int | None:
    """`sliding_window`, which counts only where `use_sliding_window` is true."""
    if not flag(config, "use_sliding_window", default=False):
        return None
    return optional_integer(config, "sliding_window", at_least=1)


def dense_mlps(config: Mapping[str, Any]) -> Callable[[int], list[Mlp]]:
    return lambda layers: [DenseMlp(intermediate_size=integer(config, "intermediate_size"))] * layers


def sparse_mlps(config: Mapping[str, Any], *, experts_key: str, shared_size: int | None) -> Callable[[int], list[Mlp]]:
    """Each layer's MLP: experts on every `decoder_sparse_step`th layer that `mlp_only_layers` does not name.

    Source: transformers 5.23, Qwen2MoeDecoderLayer.__init__ and Qwen3MoeDecoderLayer.__init__.
    """
    named = config.get("mlp_only_layers") or []
    if not isinstance(named, list) or not all(isinstance(index, int) for index in named):
        raise MalformedError("config_mlp_only_layers", found=_shown(named))
    dense_only = set(named)
    step = integer(config, "decoder_sparse_step") if config.get("decoder_sparse_step") is not None else 1
    experts = integer(config, experts_key, at_least=0, at_most=MOST_HEADS)
    layers = integer(config, "num_hidden_layers", at_most=MOST_LAYERS)
    if layers * experts > MOST_EXPERTS:
        raise MalformedError("config_too_many_experts", layers=layers, experts=experts, most=MOST_EXPERTS)
    taken = integer(config, "num_experts_per_tok", at_most=max(experts, 1))

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


# --- building the modules ------------------------------------------------------------------------------------------


def linear(
    name: str,
    in_features: int,
    out_features: int,
    dtype: DType,
    *,
    bias: bool = False,
    component: str | None = None,
    tied_to: str | None = None,
) -> Module:
    """`nn.Linear`: weight (out_features, in_features), bias (out_features,)."""
    weight = Tensor("weight", (out_features, in_features), dtype)
    biases = (Tensor("bias", (out_features,), dtype),) if bias else ()
    return Module(
        name=name,
        class_name="Linear",
        arguments=f"in_features={in_features}, out_features={out_features}, bias={bias}",
        tensors=biases if tied_to else (weight, *biases),
        tied_to=tied_to,
        component=component,
    )


def rms_norm(name: str, width: int, spec: ModelSpec, component: str | None = None) -> Module:
    """RMSNorm: one weight for each of `width` channels. Source: Zhang and Sennrich 2019."""
    return Module(
        name=name,
        class_name=f"{spec.class_prefix}RMSNorm",
        arguments=f"({width},), eps={spec.norm_eps}",
        tensors=(Tensor("weight", (width,), spec.dtype),),
        component=component,
    )


def activation(spec: ModelSpec) -> Module:
    return Module(name="act_fn", class_name=ACTIVATION_CLASSES[spec.activation])


def attention(kind: Attention, spec: ModelSpec) -> Module:
    """q, k and v projections, the output projection, and QK-Norm over head_dim where the family has it."""
    match kind:
        case FullAttention() | SlidingAttention():
            query = kind.query_heads * kind.head_dim
            key_value = kind.kv_heads * kind.head_dim
            norms = (
                (rms_norm("q_norm", kind.head_dim, spec), rms_norm("k_norm", kind.head_dim, spec))
                if kind.qk_norm
                else ()
            )
            return Module(
                name="self_attn",
                class_name=f"{spec.class_prefix}Attention",
                component="attention",
                children=(
                    linear("q_proj", spec.hidden_size, query, spec.dtype, bias=kind.qkv_bias),
                    linear("k_proj", spec.hidden_size, key_value, spec.dtype, bias=kind.qkv_bias),
                    linear("v_proj", spec.hidden_size, key_value, spec.dtype, bias=kind.qkv_bias),
                    linear("o_proj", query, spec.hidden_size, spec.dtype, bias=kind.output_bias),
                    *norms,
                ),
            )


def gated_mlp(name: str, intermediate_size: int, spec: ModelSpec, component: str) -> Module:
    return Module(
        name=name,
        class_name=f"{spec.class_prefix}MLP",
        component=component,
        children=(
            linear("gate_proj", spec.hidden_size, intermediate_size, spec.dtype),
            linear("up_proj", spec.hidden_size, intermediate_size, spec.dtype),
            linear("down_proj", intermediate_size, spec.hidden_size, spec.dtype),
            activation(spec),
        ),
    )


def router(mlp: MoeMlp, spec: ModelSpec) -> Module:
    weight = Tensor("weight", (mlp.experts, spec.hidden_size), spec.dtype)
    return Module(name="gate", class_name=f"{spec.class_prefix}TopKRouter", tensors=(weight,), component="router")


def experts(mlp: MoeMlp, spec: ModelSpec) -> Module:
    """All experts fused: gate over up (experts, 2 x intermediate, hidden), down (experts, hidden, intermediate)."""
    return Module(
        name="experts",
        class_name=f"{spec.class_prefix}Experts",
        tensors=(
            Tensor("gate_up_proj", (mlp.experts, 2 * mlp.intermediate_size, spec.hidden_size), spec.dtype),
            Tensor("down_proj", (mlp.experts, spec.hidden_size, mlp.intermediate_size), spec.dtype),
        ),
        routed=(mlp.experts_per_token, mlp.experts),
        component="experts",
        children=(activation(spec),),
    )


SparseBlock = Callable[[MoeMlp, ModelSpec], tuple[Module, ...]]


def no_sparse_block(mlp: MoeMlp, spec: ModelSpec) -> tuple[Module, ...]:
    raise AssertionError(f"{spec.family} has no experts")


def decoder_layer(index: int, repeats: int, layer: Layer, spec: ModelSpec, sparse_block: SparseBlock) -> Module:
    match layer.mlp:
        case DenseMlp(intermediate_size=width):
            mlp = gated_mlp("mlp", width, spec, "mlp")
        case MoeMlp():
            mlp = Module(
                name="mlp",
                class_name=f"{spec.class_prefix}SparseMoeBlock",
                children=sparse_block(layer.mlp, spec),
                component="mlp",
            )
    return Module(
        name=str(index),
        class_name=f"{spec.class_prefix}DecoderLayer",
        repeats=repeats,
        children=(
            attention(layer.attention, spec),
            mlp,
            rms_norm("input_layernorm", spec.hidden_size, spec, "norm"),
            rms_norm("post_attention_layernorm", spec.hidden_size, spec, "norm"),
        ),
    )


def decoder_tree(spec: ModelSpec, sparse_block: SparseBlock = no_sparse_block) -> Module:
    """The causal LM, or the bare decoder where `spec.class_name` is that."""
    layers, index = [], 0
    for layer, run in groupby(spec.layers):
        repeats = len(list(run))
        layers.append(decoder_layer(index, repeats, layer, spec, sparse_block))
        index += repeats
    padding = "" if spec.pad_token_id is None else f", padding_idx={spec.pad_token_id}"
    embedding = Module(
        name="embed_tokens",
        class_name="Embedding",
        arguments=f"{spec.vocab_size}, {spec.hidden_size}{padding}",
        tensors=(Tensor("weight", (spec.vocab_size, spec.hidden_size), spec.dtype),),
        component="embedding",
    )
    head_dim = spec.layers[0].attention.head_dim
    # Kept in float32 whatever the dtype of the parameters, and not stored. Source: {prefix}RotaryEmbedding.__init__.
    frequencies = ((head_dim + 1) // 2,)
    rotary = Module(
        name="rotary_emb",
        class_name=f"{spec.class_prefix}RotaryEmbedding",
        buffers=(Tensor("inv_freq", frequencies, DType.F32), Tensor("original_inv_freq", frequencies, DType.F32)),
    )
    decoder = Module(
        name="model",
        class_name=f"{spec.class_prefix}Model",
        children=(
            embedding,
            Module(name="layers", class_name="ModuleList", children=tuple(layers)),
            rms_norm("norm", spec.hidden_size, spec, "norm"),
            rotary,
        ),
    )
    if spec.class_name == f"{spec.class_prefix}Model":
        return Module(name="", class_name=decoder.class_name, children=decoder.children)
    tied_to = "model.embed_tokens.weight" if spec.tied_embeddings else None
    head = linear("lm_head", spec.hidden_size, spec.vocab_size, spec.dtype, component="lm_head", tied_to=tied_to)
    return Module(name="", class_name=spec.class_name, children=(decoder, head))


# --- names on disk -------------------------------------------------------------------------------------------------


def stored_as_built(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,)


def experts_stored_singly(tensor: Tensor) -> tuple[Tensor, ...]:
    """Releases store each expert's three matrices on their own; transformers 5 fuses them when it loads.

    Source: transformers 5.23, conversion_mapping ("qwen2_moe": MergeModulelist, Concatenate).
    """
    block, _, projection = tensor.name.rpartition(".")
    if not block.endswith(".mlp.experts"):
        return (tensor,)
    if projection == "gate_up_proj":
        count, doubled, hidden = tensor.shape
        parts = [("gate_proj.weight", (doubled // 2, hidden)), ("up_proj.weight", (doubled // 2, hidden))]
    else:
        count, hidden, width = tensor.shape
        parts = [("down_proj.weight", (hidden, width))]
    prefixes = [f"{block}.{expert}." for expert in range(count)]
    return tuple([Tensor(prefix + part, shape, tensor.dtype) for prefix in prefixes for part, shape in parts])
