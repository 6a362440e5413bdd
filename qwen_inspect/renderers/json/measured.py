"""A measurement -> JSON, and its differences from the prediction with their causes."""

from __future__ import annotations

from ...language import Language, Message
from ...results.measurement import Difference, KeptMeasurement, Measurement, MemoryCause, Reading
from ...results.memory import Run
from ...typed import Any, Literal
from .footprint import AliveJSON, FiguresJSON, alive_content, figures_content, workload_content
from .ranks import RanksWorkloadJSON, degrees_content
from .values import Count, Number, TypedDict


class ReadingJSON(TypedDict):
    """The device's report after a stage. Peaks are those of the stage; null if the device does not report the value."""

    stage: str
    seconds: Number | None
    allocated_bytes: Count
    peak_allocated_bytes: Count
    requested_bytes: Count | None
    peak_requested_bytes: Count | None
    reserved_bytes: Count | None
    peak_reserved_bytes: Count | None
    device_used_bytes: Count | None
    """Of all processes, as the driver reports it."""
    device_total_bytes: Count | None
    process_used_bytes: Count | None
    others_used_bytes: Count | None
    host_peak_bytes: Count
    """The process's largest resident set so far."""


class MeasuredJSON(FiguresJSON):
    """A run's memory, measured."""

    method: Literal["measured"]
    device: str
    """"cpu", or the card's name."""
    versions: dict[str, str]
    stages: list[ReadingJSON]
    load_peak_bytes: Count | None
    scratch_at_peak: list[AliveJSON]
    """Alive at the peak and not in the trace."""
    parted: str | None
    """The first allocation that differs from the trace's."""
    partial: str | None
    """Why the run ended early."""


class MemoryCauseJSON(TypedDict):
    """Why a measured figure differs: as a sentence, and as a key with values for writing it in any language."""

    cause: str
    key: str
    values: dict[str, str | int]
    bytes: int


class DifferenceJSON(TypedDict):
    """A figure, predicted and measured; `residual` is the unexplained part of the difference."""

    term: str
    predicted: Count | None
    measured: int | None
    difference: int | None
    cause: str | None
    """All causes in one sentence."""
    causes: list[MemoryCauseJSON]
    residual: int | None


class KeptMeasurementJSON(TypedDict):
    """A measurement that `memory --device` wrote to a file."""

    file: str
    device: str
    versions: dict[str, str]
    partial: bool
    workload: RanksWorkloadJSON
    differences: list[DifferenceJSON]


def measured_content(measured: Measurement, run: Run, say: Language) -> MeasuredJSON:
    return {
        "method": "measured",
        **figures_content(measured.footprint, run, say),
        "device": measured.device,
        "versions": dict(measured.versions),
        "stages": [_reading(reading) for reading in measured.readings],
        "load_peak_bytes": measured.load_peak_bytes,
        "scratch_at_peak": [alive_content(alive) for alive in measured.scratch],
        "parted": None if measured.parted is None else say(measured.parted),
        "partial": None if measured.partial is None else say(measured.partial),
    }


def _reading(reading: Reading) -> ReadingJSON:
    return {
        "stage": reading.stage,
        "seconds": reading.seconds,
        "allocated_bytes": reading.allocated,
        "peak_allocated_bytes": reading.peak_allocated,
        "requested_bytes": reading.requested,
        "peak_requested_bytes": reading.peak_requested,
        "reserved_bytes": reading.reserved,
        "peak_reserved_bytes": reading.peak_reserved,
        "device_used_bytes": reading.device_used,
        "device_total_bytes": reading.device_total,
        "process_used_bytes": reading.process_used,
        "others_used_bytes": reading.others_used,
        "host_peak_bytes": reading.host_peak,
    }


def kept_content(measurement: KeptMeasurement, say: Language) -> KeptMeasurementJSON:
    return {
        "file": measurement.path,
        "device": measurement.device,
        "versions": dict(measurement.versions),
        "partial": measurement.is_partial,
        "workload": {
            **workload_content(measurement.run),
            **degrees_content(None),
            "dtype": measurement.dtype,
            "cache_dtype": None,
        },
        "differences": [difference_content(difference, say) for difference in measurement.differences],
    }


def difference_content(difference: Difference, say: Language) -> DifferenceJSON:
    return {
        "term": difference.term,
        "predicted": difference.predicted,
        "measured": difference.measured,
        "difference": difference.difference,
        "cause": say("comma").join(say(cause.message) for cause in difference.causes) or None,
        "causes": [_memory_cause(cause, say) for cause in difference.causes],
        "residual": difference.residual,
    }


def _memory_cause(cause: MemoryCause, say: Language) -> MemoryCauseJSON:
    values: dict[str, Any] = {
        name: value.key if isinstance(value, Message) else value for name, value in cause.message.values.items()
    }
    return {
        "cause": say(cause.message),
        "key": cause.message.key,
        "values": values,
        "bytes": cause.size_bytes,
    }
