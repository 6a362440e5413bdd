"""`gpus` -> JSON: the table of cards, each figure with its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from ...language import Language
from ...results.fit import Gpu
from .values import Count, Keywords, TypedDict


class PublishedJSON(TypedDict):
    """A figure as it was printed, and where."""

    figure: str
    text: str
    source: str


class GpuJSON(TypedDict):
    """A card of the table."""

    name: str
    kind: Annotated[str, Keywords(enum=["datacentre", "workstation", "consumer"])]
    aliases: list[str]
    device_names: list[str]
    """As torch names it."""
    memory_bytes: Count
    """The nominal size."""
    reported_bytes: Count | None
    """The total of nvidia-smi."""
    usable_bytes: Count | None
    """The total that CUDA tells a process."""
    available_bytes: Count
    """The smallest of these that is known."""
    compute_capability: str | None
    bfloat16: bool | None
    """Whether the tensor cores compute in it."""
    fp8: bool | None
    sources: list[PublishedJSON]


class GpusJSON(TypedDict):
    """`gpus`."""

    model: None
    gpus: list[GpuJSON]


def content(gpus: Sequence[Gpu], say: Language) -> GpusJSON:
    return {"model": None, "gpus": [gpu_content(gpu) for gpu in gpus]}


def gpu_content(gpu: Gpu) -> GpuJSON:
    return {
        "name": gpu.name,
        "kind": gpu.kind,
        "aliases": list(gpu.aliases),
        "device_names": list(gpu.device_names),
        "memory_bytes": gpu.memory_bytes,
        "reported_bytes": gpu.reported_bytes,
        "usable_bytes": gpu.usable_bytes,
        "available_bytes": gpu.available_bytes,
        "compute_capability": None if gpu.compute_capability is None else ".".join(map(str, gpu.compute_capability)),
        "bfloat16": gpu.supports("bfloat16"),
        "fp8": gpu.supports("fp8"),
        "sources": [{"figure": name, "text": figure.text, "source": figure.source} for name, figure in gpu.figures],
    }
