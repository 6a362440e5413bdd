"""Compares predicted and measured memory term by term, and names the causes of differences."""

from __future__ import annotations

from collections.abc import Iterator

from ..language import Message
from ..predicting.allocation.on_device import WORKSPACE
from ..results.measurement import Difference, MemoryCause
from ..results.memory import LOADED_TERMS, RARE_TERMS, TERMS, Footprint, Moment
from .matching import Living
from .run import Measured

COUNTERS = Message("cause_step_counters")
# Terms made of the trace's own allocations, without loaded tensors, cuBLAS's workspace and rounding.
TRACED_TERMS = tuple(term for term in TERMS if term not in (*LOADED_TERMS, "workspace", "rounding"))


def differences(predicted: Footprint, measured: Measured) -> tuple[Difference, ...]:
    """Each term and the allocated total at the end of the run, the peaks, and the context; `None` if unknown."""
    return tuple(_differences(predicted, measured))


def _differences(predicted: Footprint, measured: Measured) -> Iterator[Difference]:
    footprint = measured.measurement.footprint
    causes = _causes_at_end(measured)
    for term in TERMS:
        expected, actual = getattr(predicted.steady, term), getattr(footprint.steady, term)
        if term in RARE_TERMS and not expected and not actual:
            continue
        yield Difference(term=term, predicted=expected, measured=actual, causes=causes.get(term, ()))
    yield Difference(
        term="steady_allocated",
        predicted=None if predicted.steady.at_least else predicted.steady.allocated,
        measured=footprint.steady.allocated,
        causes=tuple(cause for term in TERMS for cause in causes.get(term, ())),
    )
    yield Difference(
        term="peak_allocated",
        predicted=None if predicted.peak is None else predicted.peak.allocated,
        measured=None if footprint.peak is None else footprint.peak.allocated,
        causes=_causes_at_peak(predicted.peak, measured),
    )
    yield Difference(term="peak_reserved", predicted=predicted.peak_reserved, measured=footprint.peak_reserved)
    yield Difference(term="context", predicted=predicted.context_bytes, measured=footprint.context_bytes)


def _causes_at_end(measured: Measured) -> dict[str, tuple[MemoryCause, ...]]:
    causes: dict[str, tuple[MemoryCause, ...]] = {}
    counters = 0 if measured.kept_bytes is None else measured.kept_bytes.step_counters
    if counters:
        causes["optimizer"] = (MemoryCause(message=COUNTERS, size_bytes=counters),)
    if _explains(measured):
        assert measured.match is not None
        kept = _by_operator("cause_kept", measured.match.at_end, counters)
        causes["activations"] = tuple(cause for cause in kept if cause.message != COUNTERS)
    return {term: term_causes for term, term_causes in causes.items() if term_causes}


def _causes_at_peak(predicted: Moment | None, measured: Measured) -> tuple[MemoryCause, ...]:
    """By operator, what the trace lacks at the peak; and the effect of a real peak at another moment than the trace's."""
    if predicted is None or not _explains(measured):
        return ()
    assert measured.match is not None
    living, peak = measured.match.at_peak, measured.measurement.footprint.peak
    assert peak is not None
    counters = 0 if measured.kept_bytes is None else measured.kept_bytes.step_counters
    causes = _by_operator("cause_scratch", living, counters)
    if predicted.workspace != peak.workspace and peak.workspace is not None:
        causes.append(
            MemoryCause(message=Message("cause_workspace"), size_bytes=peak.workspace - (predicted.workspace or 0))
        )
    if predicted.rounding != peak.rounding and peak.rounding is not None:
        causes.append(
            MemoryCause(message=Message("cause_rounding"), size_bytes=peak.rounding - (predicted.rounding or 0))
        )
    traced = sum(getattr(predicted, term) or 0 for term in TRACED_TERMS)
    moved = sum(request.size_bytes for request in living.traced if request.operator != WORKSPACE) - traced
    if moved:
        causes.append(
            MemoryCause(
                message=Message("cause_other_moment", stage=Message(f"measured_stage_{peak.stage}")), size_bytes=moved
            )
        )
    return tuple(causes)


def _explains(measured: Measured) -> bool:
    """Whether the run made every request of the trace, so that all others are the run's own."""
    return measured.match is not None and not measured.match.missing


def _by_operator(key: str, living: Living, counters: int) -> list[MemoryCause]:
    """A cause for each operator; allocations of the optimizer's step beyond the trace are its step counters."""
    return [
        MemoryCause(
            message=COUNTERS
            if size == counters and operator.startswith("Optimizer.step")
            else Message(key, operator=operator, storages=storages),
            size_bytes=size,
        )
        for operator, (storages, size) in living.others.items()
        if operator != WORKSPACE  # a term of its own
    ]
