"""The widths of a model's matrices that decide how much vLLM's profile run takes, read off the module tree."""

from __future__ import annotations

from collections.abc import Iterator

from ...results.model import Report
from ...spec import Module, each_module
from ...values import dataclass
from .mamba import mamba_sizes, mixers
from .short_conv import convolution_columns, has_short_convolutions

# The matrices of a dense MLP: in from the hidden size, and out to it.
UP = ("gate_proj", "up_proj", "gate_up_proj", "input_linear", "fc1", "c_fc", "dense_h_to_4h", "w1", "w3")
DOWN = ("down_proj", "output_linear", "fc2", "c_proj", "dense_4h_to_h", "w2")
TOWERS = (
    "visual",
    "vision_tower",
    "vision_model",
    "audio_tower",
    "multi_modal_projector",
    "embed_vision",
    "embed_audio",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Routed experts of a layer: how many, how many a token uses, and the columns of the two products of each.

    inputs: numbers of a token that they read, if not the hidden size (Nemotron 3's latent).
    """

    count: int
    per_token: int
    up: int
    down: int
    inputs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Columns of each product of the decoder, the widest layer's, over all ranks. attention: queries, keys and values together.

    latent_values: keys and values that MLA unpacks for all heads, with their rotary part; 0 without MLA.
    mamba: all that a Mamba mixer makes of a token, which is not in `attention`.
    """

    hidden: int
    vocabulary: int
    up: int
    down: int
    attention: int
    latent_values: int
    experts: Experts | None
    layers: int
    mamba: int = 0


def decoder_widths(report: Report) -> Widths:
    """Of the decoder of `report`; what a layer lacks is 0."""
    spec, mamba = report.spec, mamba_sizes(report)
    mixer_paths = set() if mamba is None else {path for path, _ in mixers(report.tree)}
    per_layer: dict[str, dict[str, int]] = {}
    experts = None
    for path, module in each_module(report.tree):
        layer = _layer(path)
        if layer is None or path.rpartition(".")[0] in mixer_paths:
            continue
        widths = per_layer.setdefault(layer, {})
        if (found := _experts(module)) is not None:
            experts = found if experts is None or found.up > experts.up else experts
        for term, columns in _columns(path, module):
            widths[term] = widths.get(term, 0) + columns
    most = {term: max((widths.get(term, 0) for widths in per_layer.values()), default=0) for term in TERMS}
    return Widths(
        hidden=spec.hidden_size,
        vocabulary=spec.vocab_size,
        experts=experts,
        layers=len(per_layer),
        mamba=convolution_columns(report) if has_short_convolutions(report) else mamba.profiled_columns if mamba else 0,
        **most,
    )


TERMS = ("up", "down", "attention", "latent_values")


def _layer(path: str) -> str | None:
    """The decoder layer that a module belongs to, as a prefix of its name."""
    parts = path.split(".")
    if "layers" not in parts[:-1] or any(part in TOWERS for part in parts):
        return None
    return ".".join(parts[: parts.index("layers") + 2])


def _columns(path: str, module: Module) -> Iterator[tuple[str, int]]:
    name = path.rpartition(".")[2]
    matrix = next((tensor.shape for tensor in module.tensors if len(tensor.shape) == 2), None)
    if matrix is None:
        return
    if name in UP:
        yield "up", matrix[0]
    elif name in DOWN:
        yield "down", matrix[1]
    elif name in (
        "q_proj",
        "k_proj",
        "v_proj",
        "qkv_proj",
        "q_b_proj",
        "in_proj_qkvz",
        "in_proj_qkv",
        "in_proj_z",
        "in_proj",
    ):
        yield "attention", matrix[0]
    elif name == "kv_b_proj":
        yield "latent_values", matrix[0]


def _experts(module: Module) -> Experts | None:
    if module.routed is None:
        return None
    tensors = {tensor.name: tensor.shape for tensor in module.tensors}
    gated = "gate_up_proj" in tensors
    up, down = tensors.get("gate_up_proj" if gated else "up_proj"), tensors.get("down_proj")
    if up is None or down is None or len(up) != 3 or len(down) != 3:
        return None
    per_token, count = module.routed
    if not gated:  # (experts, width, inputs) and (experts, inputs, width)
        return Experts(count=count, per_token=per_token, up=up[1], down=up[1], inputs=up[2])
    # (experts, 2 x width, hidden) and (experts, hidden, width), or both transposed: the hidden size is what they share
    width = min(set(down[1:]) - (set(up[1:]) & set(down[1:])), default=min(down[1:]))
    return Experts(count=count, per_token=per_token, up=2 * width, down=width)
