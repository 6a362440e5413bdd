"""What a device told -> JSON, and the differences from what was predicted with their causes."""

from __future__ import annotations

from typing import Any

from ...language import Language, Message
from ...results.measurement import Difference, KeptMeasurement, Measurement, MemoryCause
from ...results.memory import Run
from .footprint import alive_content, footprint_content, workload_content
from .ranks import degrees_content


def measured_content(measured: Measurement, run: Run, say: Language) -> dict[str, Any]:
    """What a device told: the keys of a prediction, and what only a device has."""
    figures = (
        "allocated", "peak_allocated", "requested", "peak_requested", "reserved", "peak_reserved",
        "device_used", "device_total", "process_used", "others_used", "host_peak",
    )  # fmt: skip
    return {
        **footprint_content(measured.footprint, run, say),
        "device": measured.device,
        "versions": dict(measured.versions),
        "stages": [
            {
                "stage": reading.stage,
                "seconds": reading.seconds,
                **{f"{name}_bytes": getattr(reading, name) for name in figures},
            }
            for reading in measured.readings
        ],
        "load_peak_bytes": measured.load_peak_bytes,
        "scratch_at_peak": [alive_content(one) for one in measured.scratch],
        "parted": None if measured.parted is None else say(measured.parted),
        "partial": None if measured.partial is None else say(measured.partial),
    }


def kept_content(kept: KeptMeasurement, say: Language) -> dict[str, Any]:
    return {
        "file": kept.path,
        "device": kept.device,
        "versions": dict(kept.versions),
        "partial": kept.is_partial,
        "workload": {**workload_content(kept.run), **degrees_content(None), "dtype": kept.dtype, "cache_dtype": None},
        "differences": [difference_content(one, say) for one in kept.differences],
    }


def difference_content(one: Difference, say: Language) -> dict[str, Any]:
    return {
        "term": one.term,
        "predicted": one.predicted,
        "measured": one.measured,
        "difference": one.difference,
        "cause": say("comma").join(say(cause.message) for cause in one.causes) or None,
        "causes": [_memory_cause(cause, say) for cause in one.causes],
        "residual": one.residual,
    }


def _memory_cause(cause: MemoryCause, say: Language) -> dict[str, Any]:
    """In a sentence, and by key and values, from which it can be told in the other language."""
    values = {name: value.key if isinstance(value, Message) else value for name, value in cause.message.values.items()}
    return {
        "cause": say(cause.message),
        "key": cause.message.key,
        "values": values,
        "bytes": cause.size_bytes,
    }
