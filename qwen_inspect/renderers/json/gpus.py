"""`gpus` -> JSON: the table of cards, each figure with its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...language import Language
from ...results.fit import Gpu


def content(gpus: Sequence[Gpu], say: Language) -> dict[str, Any]:
    return {"model": None, "gpus": [gpu_content(gpu) for gpu in gpus]}


def gpu_content(gpu: Gpu) -> dict[str, Any]:
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
        "sources": [{"figure": name, "text": one.text, "source": one.source} for name, one in gpu.figures],
    }
