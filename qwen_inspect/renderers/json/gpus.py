"""`gpus` -> JSON: the table of cards, each figure with its source."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.fit import Gpu
from ...typed import Annotated
from .values import Count, Keywords, TypedDict


class PublishedJSON(TypedDict):
    """A figure as published, and its source."""

    figure: str
    text: str
    source: str


class GpuJSON(TypedDict):
    """A GPU of the table."""

    name: str
    kind: Annotated[str, Keywords(enum=["datacentre", "workstation", "consumer"])]
    aliases: list[str]
    device_names: list[str]
    """torch's names for it."""
    memory_bytes: Count
    """The nominal size."""
    reported_bytes: Count | None
    """Total memory as nvidia-smi reports it."""
    usable_bytes: Count | None
    """Total memory as CUDA reports it to a process."""
    available_bytes: Count
    """`usable_bytes` if known, else `reported_bytes`, else `memory_bytes`."""
    compute_capability: str | None
    multiprocessors: Count | None
    bytes_per_second: Count | None
    """The published bandwidth of its memory."""
    operations_per_second: Count | None
    """Of its tensor cores with 16-bit matrices, sums in 32 bits, without sparsity."""
    bfloat16: bool | None
    """Whether the tensor cores support it."""
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
        "multiprocessors": gpu.multiprocessors,
        "bytes_per_second": gpu.bandwidth,
        "operations_per_second": gpu.tensor_rate,
        "bfloat16": gpu.supports("bfloat16"),
        "fp8": gpu.supports("fp8"),
        "sources": [{"figure": name, "text": figure.text, "source": figure.source} for name, figure in gpu.figures],
    }
