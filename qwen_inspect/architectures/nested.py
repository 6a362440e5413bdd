"""The decoder of another family within a model of several parts, as that family's own module describes it."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import BlockFormat, DType
from ..errors import UnsupportedError
from ..spec import FullAttention, Layer, ModelSpec, Module, SlidingAttention
from ..standard import import_module
from ..typed import Any
from ..values import dataclass
from .components import each_experts_module
from .design import Architecture, KeptLayer, StoredForm
from .families import CLASSES, FAMILIES, TEXTS
from .outline import keeps_heads
from .qwen_audio import QWEN2, QWEN3
from .reading import part, part_type, whole_dtype

# What classes take for keys that a nested configuration lacks, where their own modules ask for them.
# Source: transformers 5.23, models/*/configuration_*.py
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "qwen2": QWEN2["text"],
    "qwen3": QWEN3["text"],
    "qwen3_moe": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedDecoder:
    """text: its configuration with defaults. tree: the bare decoder, unnamed. norm_dtype: of its last norm. The others as in
    `outline.outlined`.
    """

    text: Mapping[str, Any]
    tree: Module
    norm_dtype: DType | BlockFormat
    kept: tuple[KeptLayer, ...]
    routed: tuple[int, int] | None
    stored_form: StoredForm
    kernel: str


def decoder_within(config: Mapping[str, Any], *, default: str) -> NestedDecoder:
    """That of `text_config`. default: its model_type if it states none.

    UnsupportedError for one that `families.TEXTS` does not list for the whole model's type.
    """
    nested: Mapping[str, Any] = {}
    known, dtype = TEXTS[config["model_type"]], whole_dtype(config)
    if config.get("text_config") is not None:
        nested = part(config, "text_config", model_types=known)
    kind = part_type(nested, "text_config", model_types=known, default=default)
    text = {**DEFAULTS.get(kind, {}), **nested, "model_type": kind, "architectures": [CLASSES[kind][1]]}
    if kind == "qwen3_moe" and not {"num_experts", "num_local_experts"} & {*text}:
        text["num_experts"] = 128
    family = import_module(f"{__package__}.{FAMILIES[kind]}")
    architecture: Architecture = family.architecture({**text, "dtype": str(dtype), "torch_dtype": None})
    kept = architecture.kept
    spec = architecture.spec
    if kept is None:
        kept = tuple(_kept(index, layer, spec) for index, layer in enumerate(spec.layers))
    read = {
        "hidden_size": spec.hidden_size,
        "hidden_act": spec.activation,
        "max_position_embeddings": spec.context_tokens,
    }
    return NestedDecoder(
        text={**text, **read},
        tree=architecture.tree,
        norm_dtype=next(child for child in architecture.tree.children if child.name == "norm").tensors[0].dtype,
        kept=kept,
        routed=next((module.routed for module in each_experts_module(architecture.tree)), None),
        stored_form=architecture.stored_form,
        kernel=spec.kernel,
    )


def _kept(index: int, layer: Layer, spec: ModelSpec) -> KeptLayer:
    kind = layer.attention
    if not isinstance(kind, FullAttention | SlidingAttention):
        raise UnsupportedError("config_part_unsupported", key="text_config", found=spec.family, known="softmax")
    window = kind.window_tokens if isinstance(kind, SlidingAttention) else None
    return keeps_heads(index, kind.query_heads, kind.kv_heads, kind.head_dim, spec.dtype, window=window)
