"""A design apart: its structure, which decides what a run does, and its dimensions, which decide how large its requests are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..results.attention import AnyLayerAttention, LayerAttention, LinearLayerAttention
from ..results.cache import CacheReport
from ..spec import ModelSpec, Module

# Modules beside the decoder, which a prompt of text alone does not run.
TOWERS = frozenset(
    {
        "visual", "vision_tower", "vision_model", "vision_encoder", "vision_embed_tokens", "multi_modal_projector", "image_newline",
        "patch_merger", "audio_tower", "embed_vision", "embed_audio", "mtp",
    }
)  # fmt: skip
LAYERS = "layers"
FLASH_HEAD_DIM = 256  # the widest of flash attention. Source: torch 2.13, sdp_utils.cpp, check_head_dim_size_flash


class Part(NamedTuple):
    """A layer, or all that is outside of the layers. structure: names, classes and what else is no size, as text."""

    structure: str
    dimensions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """outside: what is outside of the layers. layers: each one."""

    outside: Part
    layers: tuple[Part, ...]


def outline_of(
    spec: ModelSpec, tree: Module, attention: Sequence[AnyLayerAttention], cache: CacheReport
) -> Outline | None:
    """None for a model whose layers are not a list with an attention and a cache for each."""
    if len(attention) != len(cache.layers):
        return None
    containers = [module for module in _below(tree) if module.name == LAYERS and _length(module) == len(attention)]
    if len(containers) != 1:
        return None
    shapes = {name: tensor.shape for name, tensor in _tensors(tree)}
    bits = 16 if spec.dtype.bits == 16 else spec.dtype.bits
    structure, dimensions = _erased(tree, shapes, bits, without=containers[0])
    outside = Part(repr((spec.class_name, bits, structure)), dimensions)
    blocks: list[Module] = [child for child in containers[0].children for _ in range(child.repeats)]
    erased = {id(child): _erased(child, shapes, bits) for child in containers[0].children}
    layers = []
    for block, reading, kept in zip(blocks, attention, cache.layers, strict=True):
        structure, dimensions = erased[id(block)]
        how, heads = _attention(reading)
        _, class_name, _, *inner = structure  # the layer's number and its repeats do not matter
        layers.append(Part(repr((kept.kind, *how, class_name, *inner)), heads + dimensions))
    return Outline(outside, tuple(layers))


def _below(module: Module) -> Iterator[Module]:
    yield module
    for child in module.children:
        if child.name not in TOWERS:
            yield from _below(child)


def _length(module: Module) -> int:
    return sum(child.repeats for child in module.children)


def _tensors(module: Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for tensor in module.tensors:
        yield f"{prefix}{tensor.name}", tensor
    for child in module.children:
        if child.name != LAYERS and child.name not in TOWERS:
            yield from _tensors(child, f"{prefix}{child.name}.")


def _erased(module: Module, shapes: Any, bits: int, without: Module | None = None) -> tuple[Any, tuple[int, ...]]:
    """The module's structure, and its dimensions in the same order; without `without` and towers."""
    dimensions: list[int] = [] if module.routed is None else [*module.routed]
    tensors = [(tensor.name, tensor.shape, tensor.dtype) for tensor in module.tensors]
    if module.tied_to is not None and module.tied_to in shapes:
        tensors.append(("weight", shapes[module.tied_to], None))  # as if it had its own
    told = []
    for name, shape, dtype in tensors:
        told.append((name, len(shape), bits if dtype is None else getattr(dtype, "bits", 0)))
        dimensions += shape
    for buffer in module.buffers:
        told.append((buffer.name, len(buffer.shape), str(buffer.dtype)))
        dimensions += buffer.shape
    children = []
    for child in module.children:
        if child is without or child.name in TOWERS:
            continue
        structure, inner = _erased(child, shapes, bits, without)
        children.append(structure)
        dimensions += inner
    path: Any = module.routed is not None
    if path:  # grouped products ask for rows of whole 16 bytes
        path = all(size * bits % 128 == 0 for tensor in module.tensors for size in tensor.shape[1:]) or "unaligned"
    return (module.name, module.class_name, module.repeats, path, *told, *children), tuple(dimensions)


def _attention(layer: AnyLayerAttention) -> tuple[tuple[object, ...], tuple[int, ...]]:
    """What of a layer's attention decides which path its code takes, and its figures."""
    match layer:
        case LayerAttention():
            wide = layer.head_dim > FLASH_HEAD_DIM
            path = (layer.window_tokens is None, layer.gated, layer.kv_heads == layer.query_heads, wide)
        case LinearLayerAttention():
            path = (layer.key_heads == layer.value_heads,)
        case _:
            path = (layer.window_tokens is None,)
    return (type(layer).__name__, *path), layer.heads
