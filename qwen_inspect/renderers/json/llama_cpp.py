"""`fit --llama-cpp` -> JSON."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.llama_cpp import Buffer, BufferKind, ChosenQuantisation, DeviceTotal, Fitted, LlamaCppReport
from ...typed import Literal
from .common import OfModelJSON
from .fit import NamedCardJSON
from .values import Count, Positive, TypedDict


class BufferJSON(TypedDict):
    """A buffer as llama.cpp prints it; `bytes` is null if it is unknown or known only as a range."""

    name: BufferKind
    device: str
    context: Literal["model", "draft", "mtp", "projector"]
    """The model's, a draft model's (-md), or that of the model's layers for multi-token prediction."""
    bytes: Count | None
    low_bytes: Count
    high_bytes: Count | None


class DeviceJSON(TypedDict):
    """A card, or the host (`gpu` null), and the sum of its buffers; `fits` is null if uncertain."""

    device: str
    gpu: NamedCardJSON | None
    required_bytes: Count
    """A lower bound if `high_bytes` differs."""
    high_bytes: Count | None
    available_bytes: Count | None
    fits: bool | None


class LogLineJSON(TypedDict):
    """A printed buffer beside its prediction; null where one of them is missing."""

    name: BufferKind
    device: str
    printed_mib: str | None
    predicted_bytes: Count | None
    agrees: bool | None


class ChosenQuantisationJSON(TypedDict):
    """What --quant largest chose."""

    name: str
    """Of llama-quantize, or what to type for a stored file."""
    bytes: Count


class FittedJSON(TypedDict):
    """What llama.cpp's --fit, on by default, makes of a command that leaves less than its margins free."""

    context_tokens: Positive
    ngl: Count
    tensor_split: list[Count]
    """Layers by card; empty for a single card."""
    override_tensor: list[str]
    """PATTERN=DEVICE each."""
    devices: list[DeviceJSON]


class LlamaCppWorkloadJSON(TypedDict):
    """What the command asks for, with llama.cpp's defaults."""

    program: str
    context_tokens: Positive
    cells: Positive
    """Of one stream of the cache."""
    sequences: Positive
    ngl: Count
    layers: Positive
    flash_attention: bool
    cache_type_k: str
    cache_type_v: str


class LlamaCppCommandKeysJSON(TypedDict):
    engine: Literal["llama.cpp"]
    engine_version: str
    """The build whose graphs the figures follow."""
    build_is_known: bool
    workload: LlamaCppWorkloadJSON
    fits: bool | None
    buffers: list[BufferJSON]
    devices: list[DeviceJSON]
    max_context_tokens: Count | None
    """The largest -c with all else as in the command; null if not known. Likewise the next two."""
    max_ngl: Count | None
    min_n_cpu_moe: Count | None
    fitted: FittedJSON | None
    """null for a command that --fit leaves as it is."""
    ignored_options: list[str]
    log: list[LogLineJSON] | None
    quantisation: ChosenQuantisationJSON | None
    """null without --quant largest."""
    assumptions: list[str]


class LlamaCppCommandJSON(OfModelJSON, LlamaCppCommandKeysJSON):
    """`fit --llama-cpp`."""


def buffers_content(buffers: Sequence[Buffer]) -> list[BufferJSON]:
    return [
        {
            "name": buffer.kind,
            "device": buffer.device,
            "context": buffer.context,
            "bytes": buffer.size_bytes,
            "low_bytes": buffer.low_bytes,
            "high_bytes": buffer.high_bytes,
        }
        for buffer in buffers
    ]


def _devices(totals: Sequence[DeviceTotal]) -> list[DeviceJSON]:
    return [
        {
            "device": total.device,
            "gpu": None if total.gpu is None else {"name": total.gpu.name, "memory_bytes": total.gpu.memory_bytes},
            "required_bytes": total.low_bytes,
            "high_bytes": total.high_bytes,
            "available_bytes": total.available_bytes,
            "fits": total.fits,
        }
        for total in totals
    ]


def _fitted(fitted: Fitted | None) -> FittedJSON | None:
    if fitted is None:
        return None
    return {
        "context_tokens": fitted.context_tokens,
        "ngl": fitted.offloaded,
        "tensor_split": list(fitted.split),
        "override_tensor": [f"{pattern}={device}" for pattern, device in fitted.overrides],
        "devices": _devices(fitted.devices),
    }


def quantisation_content(chosen: ChosenQuantisation | None) -> ChosenQuantisationJSON | None:
    return None if chosen is None else {"name": chosen.name, "bytes": chosen.size_bytes}


def llama_cpp_content(report: LlamaCppReport, say: Language) -> LlamaCppCommandKeysJSON:
    return {
        "engine": "llama.cpp",
        "engine_version": report.build,
        "build_is_known": report.build_is_known,
        "workload": {
            "program": report.program,
            "context_tokens": report.context_tokens,
            "cells": report.cells,
            "sequences": report.sequences,
            "ngl": report.offloaded,
            "layers": report.layers,
            "flash_attention": report.flash_attention,
            "cache_type_k": report.cache_types[0],
            "cache_type_v": report.cache_types[1],
        },
        "fits": report.fits,
        "buffers": buffers_content(report.buffers),
        "devices": _devices(report.devices),
        "max_context_tokens": report.reach.context_tokens,
        "max_ngl": report.reach.offloaded,
        "min_n_cpu_moe": report.reach.host_experts,
        "fitted": _fitted(report.fitted),
        "ignored_options": list(report.ignored),
        "log": None
        if report.log is None
        else [
            {
                "name": line.kind,
                "device": line.device,
                "printed_mib": None if line.printed is None else f"{line.printed // 100}.{line.printed % 100:02d}",
                "predicted_bytes": line.predicted_bytes,
                "agrees": line.agrees,
            }
            for line in report.log
        ],
        "quantisation": quantisation_content(report.quantisation),
        "assumptions": [say(notice) for notice in report.notices],
    }
