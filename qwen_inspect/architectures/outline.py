"""A design stated by its modules and by what each layer keeps, with the names that transformers gives them.

`print(model)` shows tree, order, class names and the arguments in brackets; the tests hold each family to the class that
transformers builds. Source: transformers 5.23, models/*/modeling_*.py; torch 2.13, extra_repr of its modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..results.attention import AnyLayerAttention, EncoderLayerAttention, LayerAttention, OtherLayerAttention
from ..results.cache import CacheKind, CacheLayer
from ..spec import ModelSpec, Module, each_buffer, tied_tensors
from ..typed import Any
from ..values import replace
from .blocks import linear, stored_as_built
from .components import claims_experts, component_of, each_experts_module, folded, routed_share
from .design import Architecture, KeptLayer, StoredForm
from .reading import (
    ACTIVATION_CLASSES,
    check_layer_types,
    class_prefix_of,
    flag,
    integer,
    number,
    optional_integer,
    read_class_name,
    shown,
    whole_dtype,
)
from .sizes import check_sizes

__all__ = [
    "activation",
    "causal_lm",
    "check_width",
    "convolution",
    "dropout",
    "embedding",
    "experts",
    "frequencies",
    "gated_mlp",
    "keeps_heads",
    "keeps_latent",
    "keeps_nothing",
    "keeps_nothing_both_ways",
    "keeps_states",
    "layer_list",
    "layer_norm",
    "linear",
    "norm",
    "outlined",
    "patches",
    "read_heads",
    "read_object",
    "read_padding",
    "read_rope",
    "read_spans",
    "rotary_dim",
    "whole_dtype",
    "with_aliases",
    "with_defaults",
]

# The ways to rotate; which one it is does not change the sizes. Source: transformers 5.23, modeling_rope_utils
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "mrope", "su")
# A layer's type -> what it keeps, and the key of its window
SPANS: Mapping[str, tuple[CacheKind, str | None]] = {
    "full_attention": ("full", None),
    "sliding_attention": ("sliding", "sliding_window"),
    "chunked_attention": ("chunked", "attention_chunk_size"),
}

# --- the configuration


def with_defaults(
    config: Mapping[str, Any], defaults: Mapping[str, Any], *, rope_types: tuple[str, ...] = ROPE_TYPES
) -> dict[str, Any]:
    """`config` with the class's defaults for the keys that it lacks; a null stays a null.

    MalformedError for a number that no model has. Source of each family's defaults: its configuration_*.py.
    """
    check_sizes(config)
    merged = {**defaults, **config}
    for key in defaults:
        if "eps" in key:  # of norms, which is printed
            number(merged, key, default=0)
    for key in ("rope_scaling", "rope_parameters"):
        rope = merged.get(key)
        if rope is not None and not isinstance(rope, Mapping):
            raise MalformedError("config_not_object", key=key, found=shown(rope))
        for parameters in (rope, *(rope.values() if isinstance(rope, Mapping) else ())):
            if isinstance(parameters, Mapping):
                kind = parameters.get("rope_type", parameters.get("type", "default"))
                if kind not in rope_types:
                    raise UnsupportedError("rope_type_unsupported", found=shown(kind), known=", ".join(rope_types))
    return merged


def with_aliases(config: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """`config` with the value of each alias under the key that it stands for, as transformers' `attribute_map` sets it."""
    return {**config, **{key: config[alias] for alias, key in aliases.items() if alias in config}}


def read_object(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """`config[key]`, an object; empty if the key is missing or null."""
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise MalformedError("config_not_object", key=key, found=shown(value))
    return value


def read_rope(text: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The way to rotate and its parameters, under either key. Source: as `rotary_dim`."""
    rope = read_object(text, "rope_scaling") or read_object(text, "rope_parameters")
    return str(rope.get("rope_type", rope.get("type", "default"))), rope


def rotary_dim(text: Mapping[str, Any], head_dim: int, *, partial: bool) -> int:
    """Channels of a head for which the class keeps frequencies. partial: whether its default RoPE reads `partial_rotary_factor`.

    Source: transformers 5.23, modeling_rope_utils (convert_rope_params_to_dict, ROPE_INIT_FUNCTIONS), and
    compute_default_rope_parameters of each class.
    """
    kind, rope = read_rope(text)
    factor = rope.get("partial_rotary_factor", text.get("partial_rotary_factor"))
    if factor is None or kind == "proportional" or (kind == "default" and not partial):
        return head_dim
    dim = int(head_dim * number({"partial_rotary_factor": factor}, "partial_rotary_factor", default=1.0))
    if not 1 <= dim <= head_dim:
        raise MalformedError("config_rotary_dim", found=dim, head_dim=head_dim)
    return dim


def read_spans(text: Mapping[str, Any], layers: int) -> list[tuple[CacheKind, int | None]]:
    """(kind, window in tokens) of what each layer of softmax attention keeps: by `layer_types`, else by `sliding_window` or
    `attention_chunk_size`, which then hold for all.

    Source: transformers 5.23, cache_utils.get_layer_types_and_kwargs.
    """
    if text.get("kv_sharing_modes") is not None:
        raise UnsupportedError("config_key_unsupported", key="kv_sharing_modes", found=shown(text["kv_sharing_modes"]))
    types = text.get("layer_types")
    if types is None:
        window, chunk = (text.get(key) for key in ("sliding_window", "attention_chunk_size"))
        kind = "sliding" if window is not None else "full" if chunk is None else "chunked"
        types = [f"{kind}_attention"] * layers
    check_layer_types(types, layers, kinds=tuple(SPANS))
    spans = [SPANS[kind] for kind in types]
    return [(kind, None if key is None else integer(text, key, at_least=2)) for kind, key in spans]


def read_heads(config: Mapping[str, Any]) -> tuple[int, int]:
    """(query heads, KV heads), of which the second divide the first; null KV heads are as many as query heads."""
    query_heads = integer(config, "num_attention_heads")
    kv_heads = optional_integer(config, "num_key_value_heads", at_least=1) or query_heads
    if query_heads % kv_heads:
        raise MalformedError("config_heads_do_not_divide", query_heads=query_heads, kv_heads=kv_heads)
    return query_heads, kv_heads


def check_width(text: Mapping[str, Any]) -> None:
    """Raises MalformedError unless the heads divide `hidden_size`, for classes that refuse it whatever head_dim is.

    Source: validate_architecture of their configurations.
    """
    hidden, heads = integer(text, "hidden_size"), integer(text, "num_attention_heads")
    if hidden % heads:
        raise MalformedError("config_width_not_divisible", hidden=hidden, heads=heads)


def read_padding(config: Mapping[str, Any]) -> int | None:
    """`pad_token_id` as nn.Embedding reads it: within the table, a negative one from its end."""
    rows = integer(config, "vocab_size")
    padding = optional_integer(config, "pad_token_id", at_least=-rows, at_most=rows - 1)
    return rows + padding if padding is not None and padding < 0 else padding


# --- modules


def activation(name: str, act: object) -> Module:
    """The module of an activation function that the configuration calls `act`."""
    if not isinstance(act, str) or act not in ACTIVATION_CLASSES:
        raise UnsupportedError("activation_unsupported", found=shown(act), known=", ".join(ACTIVATION_CLASSES))
    return Module(name=name, class_name=ACTIVATION_CLASSES[act])


def norm(
    name: str, class_name: str, width: int, dtype: DType, *, eps: object = None, arguments: str | None = None
) -> Module:
    """A norm with a weight of `width` channels. eps: shown as `(width,), eps=...`; arguments: shown in place of that."""
    shown_arguments = f"({width},), eps={eps}" if arguments is None else arguments
    return Module(
        name=name, class_name=class_name, arguments=shown_arguments, tensors=(Tensor("weight", (width,), dtype),)
    )


def layer_norm(name: str, width: int, dtype: DType, *, eps: object) -> Module:
    """`nn.LayerNorm`: weight and bias of `width` channels."""
    return Module(
        name=name,
        class_name="LayerNorm",
        arguments=f"({width},), eps={eps}, elementwise_affine=True, bias=True",
        tensors=(Tensor("weight", (width,), dtype), Tensor("bias", (width,), dtype)),
    )


def dropout(name: str, share: object) -> Module:
    return Module(name=name, class_name="Dropout", arguments=f"p={share}, inplace=False")


def patches(name: str, channels: int, width: int, side: int, dtype: DType) -> Module:
    """`nn.Conv2d` over patches of `side` x `side` pixels: weight (width, channels, side, side), bias (width,)."""
    return Module(
        name=name,
        class_name="Conv2d",
        arguments=f"{channels}, {width}, kernel_size=({side}, {side}), stride=({side}, {side}), padding=valid",
        tensors=(Tensor("weight", (width, channels, side, side), dtype), Tensor("bias", (width,), dtype)),
    )


def embedding(
    name: str, rows: int, width: int, dtype: DType, *, padding: int | None = None, class_name: str = "Embedding"
) -> Module:
    """`nn.Embedding`: weight (rows, width)."""
    arguments = f"{rows}, {width}" + ("" if padding is None else f", padding_idx={padding}")
    return Module(
        name=name, class_name=class_name, arguments=arguments, tensors=(Tensor("weight", (rows, width), dtype),)
    )


def convolution(name: str, channels: int, kernel: int, dtype: DType, *, bias: bool) -> Module:
    """A causal `nn.Conv1d` of each channel alone: weight (channels, 1, kernel), bias (channels,)."""
    padding = f", padding=({kernel - 1},)" if kernel > 1 else ""
    biases = (Tensor("bias", (channels,), dtype),) if bias else ()
    return Module(
        name=name,
        class_name="Conv1d",
        arguments=f"{channels}, {channels}, kernel_size=({kernel},), stride=(1,){padding}, groups={channels}"
        + ("" if bias else ", bias=False"),
        tensors=(Tensor("weight", (channels, 1, kernel), dtype), *biases),
    )


def frequencies(dim: int, *, prefix: str = "") -> tuple[Tensor, Tensor]:
    """RoPE's frequencies, one per pair of `dim` channels, and their copy: float32 buffers whatever the parameters' dtype."""
    pairs = ((dim + 1) // 2,)
    return Tensor(f"{prefix}inv_freq", pairs, DType.F32), Tensor(f"{prefix}original_inv_freq", pairs, DType.F32)


def gated_mlp(
    name: str, class_name: str, hidden: int, intermediate: int, act: object, dtype: DType, *, bias: bool = False
) -> Module:
    """gate_proj, up_proj, down_proj and act_fn, in this order. Source: LlamaMLP."""
    return Module(
        name=name,
        class_name=class_name,
        children=(
            linear("gate_proj", hidden, intermediate, dtype, bias=bias),
            linear("up_proj", hidden, intermediate, dtype, bias=bias),
            linear("down_proj", intermediate, hidden, dtype, bias=bias),
            activation("act_fn", act),
        ),
    )


def experts(
    name: str, class_name: str, count: int, hidden: int, intermediate: int, act: object, dtype: DType
) -> Module:
    """Fused experts: gate over up (count, 2 x intermediate, hidden), down (count, hidden, intermediate).

    Source: MixtralExperts.
    """
    return Module(
        name=name,
        class_name=class_name,
        tensors=(
            Tensor("gate_up_proj", (count, 2 * intermediate, hidden), dtype),
            Tensor("down_proj", (count, hidden, intermediate), dtype),
        ),
        children=(activation("act_fn", act),),
    )


def layer_list(name: str, layers: Sequence[Module]) -> Module:
    """`nn.ModuleList` of layers, which get their numbers as names."""
    numbered = [replace(layer, name=str(index)) for index, layer in enumerate(layers)]
    return Module(name=name, class_name="ModuleList", children=folded(numbered))


# --- what a layer keeps, for one sequence


def keeps_heads(
    index: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: DType,
    *,
    window: int | None = None,
    kind: CacheKind | None = None,
    value_dim: int | None = None,
) -> KeptLayer:
    """K (kv_heads, tokens, head_dim) and V (kv_heads, tokens, value_dim); with a window, its last tokens.

    kind: "full" or, with a window, "sliding" if None.
    """
    kind = kind or ("full" if window is None else "sliding")
    values = head_dim if value_dim is None else value_dim
    attention: AnyLayerAttention
    if values == head_dim and query_heads % kv_heads == 0:
        attention = LayerAttention(
            index=index, query_heads=query_heads, kv_heads=kv_heads, head_dim=head_dim, window_tokens=window
        )
    else:
        attention = OtherLayerAttention(index=index, cache_kind=kind, window_tokens=window)
    per_token = kv_heads * (head_dim + values) * dtype.bits // 8
    return attention, CacheLayer(
        index=index, kind=kind, bytes_per_token=per_token, states_bytes=(), window_tokens=window
    )


def keeps_latent(
    index: int, rank: int, rope_dim: int, dtype: DType, *, index_dim: int = 0, kind: CacheKind | None = None
) -> KeptLayer:
    """MLA: a token's compressed K and V and its rotated key; with an index, one more key of `index_dim`.

    kind: "indexed" with an index of its own or, stated, with another layer's; else "latent".
    Source: transformers 5.23, DeepseekV3Attention and DynamicIndexedLayer; DeepSeek-V2 (arXiv 2405.04434).
    """
    kind = kind or ("indexed" if index_dim else "latent")
    per_token = (rank + rope_dim + index_dim) * dtype.bits // 8
    layer = CacheLayer(index=index, kind=kind, bytes_per_token=per_token, states_bytes=(), window_tokens=None)
    return OtherLayerAttention(index=index, cache_kind=kind, window_tokens=None), layer


def keeps_states(index: int, kind: CacheKind, states_bytes: tuple[int, ...], *, per_token: int = 0) -> KeptLayer:
    """States of constant size ("recurrent", "convolution") and, for "hybrid", keys and values of `per_token` bytes."""
    layer = CacheLayer(index=index, kind=kind, bytes_per_token=per_token, states_bytes=states_bytes, window_tokens=None)
    return OtherLayerAttention(index=index, cache_kind=kind, window_tokens=None), layer


def keeps_nothing(index: int, kind: CacheKind = "none") -> KeptLayer:
    """No cache of its own; "shared" if it reads another layer's."""
    layer = CacheLayer(index=index, kind=kind, bytes_per_token=0, states_bytes=(), window_tokens=None)
    return OtherLayerAttention(index=index, cache_kind=kind, window_tokens=None), layer


def keeps_nothing_both_ways(index: int, heads: int, head_dim: int, window: int | None = None) -> KeptLayer:
    """An encoder's layer. window: tokens that it attends to, with the token itself; None for all."""
    attention = EncoderLayerAttention(
        index=index, query_heads=heads, kv_heads=heads, head_dim=head_dim, window_tokens=window
    )
    return attention, keeps_nothing(index)[1]


# --- the whole


def causal_lm(
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    model: Module,
    kept: Sequence[KeptLayer],
    *,
    table: str = "embed_tokens",
    ties: bool = True,
    head_bias: bool = False,
    **options: Any,
) -> Architecture:
    """The usual causal LM: `model` and its output layer, which is tied to the token embedding if the configuration says so; or
    the bare `model` if that is the configuration's class.

    table: the token embedding's name in `model`. ties: whether the class can tie. head_bias: of the output layer.
    options: of `outlined`.
    """
    if read_class_name(config) == model.class_name:
        return outlined(config, replace(model, name=""), kept, text=text, table=table, **options)
    rows, width = _tensor_of(model, table).shape
    name = f"{model.name}.{table}"
    tied_to = f"{name}.weight" if ties and flag(text, "tie_word_embeddings", default=False) else None
    head = linear("lm_head", width, rows, whole_dtype(config), bias=head_bias, tied_to=tied_to)
    tree = Module(name="", class_name=read_class_name(config), children=(model, head))
    return outlined(config, tree, kept, text=text, table=name, **options)


def outlined(
    config: Mapping[str, Any],
    tree: Module,
    kept: Sequence[KeptLayer],
    *,
    text: Mapping[str, Any],
    table: str = "model.embed_tokens",
    head: str = "lm_head",
    routed: tuple[int, int] | None = None,
    persistent: tuple[str, ...] = (),
    stored_form: StoredForm = stored_as_built,
    built_name: Callable[[str], str] | None = None,
    prediction_layers: tuple[Tensor, ...] = (),
    unloaded: tuple[str, ...] = (),
    kernel: str = "sdpa",
) -> Architecture:
    """The architecture of a tree without components.

    text: the decoder's configuration with its defaults. table, head: full names of the token embedding and the output layer.
    routed: (experts per token, experts); None: as `text` states them. persistent: last parts of the names of buffers that files
    hold. The others as in `Architecture` and `ModelSpec`.
    """
    whole = _with_components(tree, table, head, routed or routed_share(text.get))
    experts_modules = list(each_experts_module(whole))
    vocabulary, width = _tensor_of(tree, table).shape
    class_name = read_class_name(config)
    act = text.get("hidden_act")
    tied = dict(tied_tensors(whole))
    spec = ModelSpec(
        family=str(config["model_type"]),
        class_name=class_name,
        class_prefix=class_prefix_of(class_name),
        vocab_size=vocabulary,
        hidden_size=width,
        context_tokens=optional_integer(text, "max_position_embeddings", at_least=1),
        tied_embeddings=f"{head}.weight" in tied,
        dtype=whole_dtype(config),
        norm_eps=0.0,
        activation=act if isinstance(act, str) else "",
        pad_token_id=None,
        layers=(),
        kernel=kernel,
    )
    return Architecture(
        spec=spec,
        tree=whole,
        stored_form=stored_form,
        built_name=built_name,
        prediction_layers=prediction_layers,
        tied=tied,
        buffers=tuple(
            part
            for buffer in each_buffer(whole)
            if buffer.name.rpartition(".")[2] in persistent
            for part in stored_form(buffer)
        ),
        unloaded=tuple(sorted(unloaded)),
        active_is_known=all(module.routed for module in experts_modules)
        if experts_modules
        else not claims_experts(text.get),
        kept=tuple(kept),
    )


def _tensor_of(tree: Module, path: str) -> Tensor:
    module = tree
    for name in path.split("."):
        module = next(child for child in module.children if child.name == name)
    return module.tensors[0] if module.tied_to is None else _tensor_of(tree, module.tied_to.rpartition(".")[0])


def _with_components(tree: Module, table: str, head: str, routed: tuple[int, int] | None) -> Module:
    """The tree with each module's component, and with `routed` where all tensors are the experts'."""

    def node(module: Module, path: str, inherited: str) -> Module:
        own = component_of(module.name, module.class_name, inherited, table=path == table, head=path == head)
        stacks = routed is not None and module.tensors and all(t.shape[:1] == routed[1:] for t in module.tensors)
        prefix = f"{path}." if path else ""
        return replace(
            module,
            component=own,
            routed=routed if stacks and own == "experts" else None,
            children=tuple(node(child, f"{prefix}{child.name}", own) for child in module.children),
        )

    root = node(tree, "", "other")
    return root if root.tensors else replace(root, component=None)
